"""Average precision, localisation, protocols, groups and statistics; numpy only, knows nothing of models."""

from hpdval.metrics.average_precision import (
    average_precision,
    mean_average_precision,
    micro_average_precision,
    voc11_average_precision,
)
from hpdval.metrics.calibration import (
    Platt,
    Reliability,
    best_f1_thresholds,
    group_reliability,
    platt,
    reliability,
)
from hpdval.metrics.episodes import EpisodeMean, episode_mean, paired_episodes
from hpdval.metrics.errors import (
    Leakage,
    Mistake,
    best_false_positives,
    co_occurrence_leakage,
    companions,
    worst_false_negatives,
)
from hpdval.metrics.evaluate import Evaluation, evaluate
from hpdval.metrics.localisation import (
    Localisation,
    best_iou,
    centre_map,
    energy_inside,
    pointing_game,
    random_map,
)
from hpdval.metrics.localisation_intervals import (
    class_means,
    localisation_class_differences,
    localisation_difference,
    localisation_interval,
    size_bounds,
)
from hpdval.metrics.protocol import Protocol
from hpdval.metrics.readout import READOUTS, apply_readout
from hpdval.metrics.significance import detectable_difference, holm, permutation_test, power_note
from hpdval.metrics.statistics import Interval, bootstrap, gains, paired_bootstrap
from hpdval.metrics.threshold import DecisionScores, decision_scores

__all__ = [
    "READOUTS",
    "DecisionScores",
    "EpisodeMean",
    "Evaluation",
    "Interval",
    "Leakage",
    "Localisation",
    "Mistake",
    "Platt",
    "Protocol",
    "Reliability",
    "apply_readout",
    "average_precision",
    "best_f1_thresholds",
    "best_false_positives",
    "best_iou",
    "bootstrap",
    "centre_map",
    "class_means",
    "co_occurrence_leakage",
    "companions",
    "decision_scores",
    "detectable_difference",
    "energy_inside",
    "episode_mean",
    "evaluate",
    "gains",
    "group_reliability",
    "holm",
    "localisation_class_differences",
    "localisation_difference",
    "localisation_interval",
    "mean_average_precision",
    "micro_average_precision",
    "paired_bootstrap",
    "paired_episodes",
    "permutation_test",
    "platt",
    "pointing_game",
    "power_note",
    "random_map",
    "reliability",
    "size_bounds",
    "voc11_average_precision",
    "worst_false_negatives",
]
