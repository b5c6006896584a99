"""Figures from scores, metrics and data: each function returns one figure, coloured alike throughout; no torch."""

from hpdval.plots.comparisons import class_ranks, gain_waterfall, sensitivity
from hpdval.plots.cost import map_against_cost
from hpdval.plots.data import class_frequency, co_occurrence, object_sizes_by_class
from hpdval.plots.errors import calibration_curve, leakage_by_class
from hpdval.plots.explained import Explanation, explained_image
from hpdval.plots.fewshot import episode_dots
from hpdval.plots.heatmaps import heatmap_grid, heatmaps
from hpdval.plots.images import example_images, ranking_examples
from hpdval.plots.localisation import localisation_dots
from hpdval.plots.published import against_published
from hpdval.plots.rankings import tail_images, top_predictions
from hpdval.plots.results import (
    ap_against_frequency,
    class_change,
    group_bars,
    size_lines,
    view_weights,
)
from hpdval.plots.style import GROUP_COLOURS, METHOD_COLOURS, Chart, figure_bytes, save_figure
from hpdval.plots.training import context_shift, loss_curves, training_bands

__all__ = [
    "GROUP_COLOURS",
    "METHOD_COLOURS",
    "Chart",
    "Explanation",
    "against_published",
    "ap_against_frequency",
    "calibration_curve",
    "class_change",
    "class_frequency",
    "class_ranks",
    "co_occurrence",
    "context_shift",
    "episode_dots",
    "example_images",
    "explained_image",
    "figure_bytes",
    "gain_waterfall",
    "group_bars",
    "heatmap_grid",
    "heatmaps",
    "leakage_by_class",
    "localisation_dots",
    "loss_curves",
    "map_against_cost",
    "object_sizes_by_class",
    "ranking_examples",
    "save_figure",
    "sensitivity",
    "size_lines",
    "tail_images",
    "top_predictions",
    "training_bands",
    "view_weights",
]
