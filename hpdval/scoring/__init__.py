"""From images to scores, and from scores to finished runs."""

from hpdval.scoring.dual_view import DualViewScorer, zero_shot, zero_shot_scorer
from hpdval.scoring.features import Features, FeatureStore, encode_split
from hpdval.scoring.head import HeadScorer
from hpdval.scoring.localisation import localise, localise_models
from hpdval.scoring.maps import Heatmaps, heatmaps
from hpdval.scoring.runs import (
    clip_of,
    encoder_of,
    label_digest,
    load_run,
    load_scorer,
    open_run,
    report_run,
    run_inputs,
    score_run,
    shared_folder,
    student_of,
)
from hpdval.scoring.scorer import Scorer, encode, native_resize

__all__ = [
    "DualViewScorer",
    "FeatureStore",
    "Features",
    "HeadScorer",
    "Heatmaps",
    "Scorer",
    "clip_of",
    "encode",
    "encode_split",
    "encoder_of",
    "heatmaps",
    "label_digest",
    "load_run",
    "load_scorer",
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
