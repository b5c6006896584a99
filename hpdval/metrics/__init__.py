"""Average precision, protocols, groups and statistics; numpy only, knows nothing of models."""

from hpdval.metrics.average_precision import (
    average_precision,
    mean_average_precision,
    micro_average_precision,
    voc11_average_precision,
)
from hpdval.metrics.evaluate import Evaluation, evaluate
from hpdval.metrics.protocol import Protocol
from hpdval.metrics.readout import READOUTS, apply_readout
from hpdval.metrics.significance import detectable_difference, holm, permutation_test, power_note
from hpdval.metrics.statistics import Interval, bootstrap, gains, paired_bootstrap
from hpdval.metrics.threshold import DecisionScores, decision_scores

__all__ = [
    "READOUTS",
    "DecisionScores",
    "Evaluation",
    "Interval",
    "Protocol",
    "apply_readout",
    "average_precision",
    "bootstrap",
    "decision_scores",
    "detectable_difference",
    "evaluate",
    "gains",
    "holm",
    "mean_average_precision",
    "micro_average_precision",
    "paired_bootstrap",
    "permutation_test",
    "power_note",
    "voc11_average_precision",
]
