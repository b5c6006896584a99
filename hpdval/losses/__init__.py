"""Multi-label losses, one family per module; each is a pure function of logits, targets and class counts."""

from hpdval.losses.asl import asl
from hpdval.losses.bce import bce, multilabel_soft_margin
from hpdval.losses.build import LOSSES, Loss, build_loss
from hpdval.losses.class_balanced import class_balanced_focal
from hpdval.losses.distribution_balanced import distribution_balanced
from hpdval.losses.focal import focal_loss
from hpdval.losses.ldam import ldam
from hpdval.losses.logit_adjustment import logit_adjustment

__all__ = [
    "LOSSES",
    "Loss",
    "asl",
    "bce",
    "build_loss",
    "class_balanced_focal",
    "distribution_balanced",
    "focal_loss",
    "ldam",
    "logit_adjustment",
    "multilabel_soft_margin",
]
