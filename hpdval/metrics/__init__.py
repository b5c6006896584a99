"""Average precision, protocols, groups and statistics; numpy only, knows nothing of models."""

from hpdval.metrics.average_precision import (
    average_precision,
    mean_average_precision,
    micro_average_precision,
    voc11_average_precision,
)
from hpdval.metrics.evaluate import Evaluation, evaluate
from hpdval.metrics.readout import READOUTS, apply_readout

__all__ = [
    "READOUTS",
    "Evaluation",
    "apply_readout",
    "average_precision",
    "evaluate",
    "mean_average_precision",
    "micro_average_precision",
    "voc11_average_precision",
]
