"""From images to scores, and from scores to finished runs."""

from hpdval.scoring.features import Features, FeatureStore, encode_split
from hpdval.scoring.localisation import localise, localise_models
from hpdval.scoring.maps import Heatmaps, heatmaps
from hpdval.scoring.runs import (
    label_digest,
    load_run,
    open_run,
    report_run,
    run_inputs,
    score_run,
    shared_folder,
    student_of,
)
from hpdval.scoring.scorer import Scorer, encode, native_resize, zero_shot, zero_shot_scorer

__all__ = [
    "FeatureStore",
    "Features",
    "Heatmaps",
    "Scorer",
    "encode",
    "encode_split",
    "heatmaps",
    "label_digest",
    "load_run",
    "localise",
    "localise_models",
    "native_resize",
    "open_run",
    "report_run",
    "run_inputs",
    "score_run",
    "shared_folder",
    "student_of",
    "zero_shot",
    "zero_shot_scorer",
]
