"""The parts of a widget, and their end."""

from __future__ import annotations

import ipywidgets as widgets


def close_parts(box: widgets.Box) -> None:
    """Close all that a box holds: ipywidgets keeps each part until then, and with it whatever hears of its changes."""
    for part in box.children:
        if isinstance(part, widgets.Box):
            close_parts(part)
        part.close()
