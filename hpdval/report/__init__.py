"""A report that writes itself from stored predictions: tables, figures, one page; ``hpdval report``.  No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpdval.report.build import build_report

__all__ = ["build_report"]


def __getattr__(name: str) -> Any:
    """Load pandas and matplotlib only when a report is built: the command line imports this package for its help."""
    if name not in __all__:
        raise AttributeError(f"module 'hpdval.report' has no attribute {name!r}; it has {', '.join(__all__)}")
    from hpdval.report.build import build_report

    return build_report
