"""CLIP with projected patch tokens, prompts, and dual-view scores."""

from hpdval.models.clip import Clip
from hpdval.models.dual_view import LogitScale, dual_view_scores
from hpdval.models.encoder import Encoder, Preprocess
from hpdval.models.load import load_clip
from hpdval.models.prompts import HierarchicalPrompts, class_prompts, context_init, hand_crafted
from hpdval.models.towers import ImageFeatures

__all__ = [
    "Clip",
    "Encoder",
    "HierarchicalPrompts",
    "ImageFeatures",
    "LogitScale",
    "Preprocess",
    "class_prompts",
    "context_init",
    "dual_view_scores",
    "hand_crafted",
    "load_clip",
]
