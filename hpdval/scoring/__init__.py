"""From images to scores, and from scores to finished runs."""

from hpdval.scoring.runs import load_run, open_run, report_run, run_inputs, score_run, student_of
from hpdval.scoring.scorer import Scorer, encode, encode_split, native_resize, zero_shot, zero_shot_scorer

__all__ = [
    "Scorer",
    "encode",
    "encode_split",
    "load_run",
    "native_resize",
    "open_run",
    "report_run",
    "run_inputs",
    "score_run",
    "student_of",
    "zero_shot",
    "zero_shot_scorer",
]
