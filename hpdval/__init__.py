"""hpdval: recognising many labels per image when most labels are rare, with vision-language models.

Public names are resolved on first use, so ``import hpdval`` loads neither torch nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "load_dataset": "hpdval.data.load",
    "load_clip": "hpdval.models.load",
    "dual_view_scores": "hpdval.models.dual_view",
    "heatmaps": "hpdval.scoring",
    "explore": "hpdval.lab.start",
    "zero_shot": "hpdval.scoring",
    "zero_shot_scorer": "hpdval.scoring",
    "open_run": "hpdval.scoring",
    "report_run": "hpdval.scoring",
    "score_run": "hpdval.scoring",
    "load_run": "hpdval.scoring",
    "Scorer": "hpdval.scoring",
    "error_report": "hpdval.error_analysis",
    "train": "hpdval.training.stages",
    "launch_training": "hpdval.launch",
    "start_training": "hpdval.detached",
    "watch": "hpdval.lab.live.widget",
    "train_fewshot": "hpdval.training.fewshot",
    "train_joint": "hpdval.training.joint",
    "train_rival": "hpdval.training.rivals",
    "train_stage1": "hpdval.training.stage1",
    "train_stage2": "hpdval.training.stage2",
    "average_precision": "hpdval.metrics",
    "evaluate": "hpdval.metrics",
    "paired_bootstrap": "hpdval.metrics",
    "get_fewshot": "hpdval.fewshot_recipes",
    "get_recipe": "hpdval.recipes",
    "given": "hpdval.overrides",
    "parse_overrides": "hpdval.overrides",
    "Run": "hpdval.run",
    "HpdvalError": "hpdval.errors",
}

__all__ = [
    "HpdvalError",
    "Run",
    "Scorer",
    "__version__",
    "average_precision",
    "dual_view_scores",
    "error_report",
    "evaluate",
    "explore",
    "get_fewshot",
    "get_recipe",
    "given",
    "heatmaps",
    "launch_training",
    "load_clip",
    "load_dataset",
    "load_run",
    "open_run",
    "paired_bootstrap",
    "parse_overrides",
    "report_run",
    "score_run",
    "start_training",
    "train",
    "train_fewshot",
    "train_joint",
    "train_rival",
    "train_stage1",
    "train_stage2",
    "watch",
    "zero_shot",
    "zero_shot_scorer",
]

if TYPE_CHECKING:
    from hpdval.data.load import load_dataset
    from hpdval.detached import start_training
    from hpdval.error_analysis import error_report
    from hpdval.errors import HpdvalError
    from hpdval.fewshot_recipes import get_fewshot
    from hpdval.lab.live.widget import watch
    from hpdval.lab.start import explore
    from hpdval.launch import launch_training
    from hpdval.metrics import average_precision, evaluate, paired_bootstrap
    from hpdval.models.dual_view import dual_view_scores
    from hpdval.models.load import load_clip
    from hpdval.overrides import given, parse_overrides
    from hpdval.recipes import get_recipe
    from hpdval.run import Run
    from hpdval.scoring import Scorer, heatmaps, load_run, open_run, report_run, score_run, zero_shot, zero_shot_scorer
    from hpdval.training.fewshot import train_fewshot
    from hpdval.training.joint import train_joint
    from hpdval.training.rivals import train_rival
    from hpdval.training.stage1 import train_stage1
    from hpdval.training.stage2 import train_stage2
    from hpdval.training.stages import train


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hpdval' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
