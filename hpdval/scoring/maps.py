"""From an image to heat maps: where a model sees a class, or what a sentence says.

``similarity``  <T, f_p> of every patch, the very numbers whose k largest make the local score (HP-DVAL eq. 4-5)
``gradient``    attention weighted by the gradient of the global score (Chefer et al., ICCV 2021)
``rollout``     attention rollout, the same map for every class (Abnar and Zuidema, ACL 2020)

Letters: n maps, C classes, P patches of a grid of rows x columns, D joint width, H x W pixels of the image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hpdval.data.decode import decode
from hpdval.data.store import resize_image, view_box
from hpdval.errors import ConfigError
from hpdval.models.attention import attention_rollout, attention_size, gradient_attention
from hpdval.models.dual_view import READINGS, patch_count, patch_scores
from hpdval.models.prompts import hand_crafted
from hpdval.models.towers import grid_extent
from hpdval.scoring.dual_view import DualViewScorer, with_views
from hpdval.scoring.scorer import encode

METHODS = ("similarity", "gradient", "rollout")
PROMPTS = ("local", "global", "hand-crafted")
UNITS = {"paper": "cosine", "released": "dot product"}
ATTENTION_BYTES = 1 << 30  # of attention and what autograd keeps of it, held at once
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Heatmaps:
    """Maps of one image, on the grid of its patches, and where on the image that grid lies.

    Attributes:
        values: (n, rows, columns) float32.
        names: what each map shows.
        shape: (H, W) of the image.
        box: left, top, right, bottom of the grid in pixels of the image; outside of it the model has seen nothing.
        method: one of ``METHODS``.
        unit: of the values: ``"cosine"``, ``"dot product"`` or ``"relevance"``; maps of different units do not compare.
    """

    values: np.ndarray
    names: tuple[str, ...]
    shape: tuple[int, int]
    box: Box
    method: str = "similarity"
    unit: str = "cosine"

    @cached_property
    def pixels(self) -> np.ndarray:
        """The maps upsampled over the image, (n, H, W) float32, NaN outside of ``box``."""
        return upsample(self.values, self.shape, self.box)

    def top_patches(self, k: int | float) -> list[np.ndarray]:
        """Return for each map the k best patches, best first, as (k, 4) rows of x, y, width, height in pixels.

        Args:
            k: a number of patches, or a share of them, as in :func:`hpdval.models.dual_view.patch_count`.
        """
        rows, columns = self.values.shape[1:]
        count = patch_count(k, rows * columns)
        best = np.argsort(-self.values.reshape(len(self.values), -1), axis=1, kind="stable")[:, :count]
        left, top, right, bottom = self.box
        width, height = (right - left) / columns, (bottom - top) / rows
        y, x = best // columns, best % columns  # (n, k)
        size = np.broadcast_to([width, height], (*best.shape, 2))
        return list(np.concatenate([np.stack([left + x * width, top + y * height], -1), size], -1))


def upsample(values: np.ndarray, shape: tuple[int, int], box: Box) -> np.ndarray:
    """Return maps (n, H, W) float32 of maps on a grid (n, rows, columns): bilinear between the patches' centres.

    Beyond the outer centres a map stays constant to the edge of ``box``; pixels whose centres lie outside are NaN.

    >>> upsample(np.array([[[0.0, 1.0]]]), (1, 6), (1.0, 0.0, 5.0, 1.0)).round(2)
    array([[[ nan, 0.  , 0.25, 0.75, 1.  ,  nan]]], dtype=float32)
    """
    left, top, right, bottom = box
    _, rows, columns = values.shape
    down, across = _weights(shape[0], rows, top, bottom), _weights(shape[1], columns, left, right)
    return (down @ values.astype(np.float32) @ across.T).astype(np.float32)  # (n, H, W)


def _weights(pixels: int, cells: int, start: float, stop: float) -> np.ndarray:
    """Return what each cell gives to each pixel along one axis, (pixels, cells); NaN for a pixel outside."""
    centres = np.arange(pixels) + 0.5
    place = ((centres - start) / (stop - start) * cells - 0.5).clip(0, cells - 1)
    low = np.minimum(place.astype(int), max(cells - 2, 0))
    weights = np.zeros((pixels, cells), np.float32)
    every = np.arange(pixels)
    weights[every, low] = 1 - (place - low)
    weights[every, np.minimum(low + 1, cells - 1)] += place - low
    weights[(centres < start) | (centres > stop)] = np.nan
    return weights


def grid_box(scorer: DualViewScorer, shape: tuple[int, int]) -> Box:
    """Return where the grid of patches lies on an image of ``shape`` (H, W): left, top, right, bottom in pixels."""
    size = scorer.clip.image_size
    left, top, right, bottom = view_box(*shape, size, scorer.resize)
    down, across = grid_extent(scorer.clip.visual, size)
    return left, top, left + (right - left) * across, top + (bottom - top) * down


def texts_of(scorer: DualViewScorer, prompts: str = "local") -> torch.Tensor:
    """Return the text features (C, D) of a scorer's classes: of its ``local`` or ``global`` set, or ``hand-crafted``.

    Raises:
        ConfigError: no such set.
    """
    if prompts not in PROMPTS:
        raise ConfigError(f"prompts is {prompts!r}; use one of {', '.join(map(repr, PROMPTS))}")
    if prompts == "hand-crafted":
        return hand_crafted(scorer.clip, scorer.classes, scorer.template)
    return scorer.text_local if prompts == "local" else scorer.text_global


def heatmaps(
    scorer: DualViewScorer,
    image: str | os.PathLike[str] | np.ndarray,
    classes: Sequence[str] = (),
    *,
    texts: Sequence[str] = (),
    method: str = "similarity",
    prompts: str | None = None,
    reading: str | None = None,
) -> Heatmaps:
    """Return where a model sees classes in an image: one map for each, over the grid of its patches.

    Args:
        scorer: of :func:`hpdval.load_run`, :func:`hpdval.zero_shot_scorer` or a training.
        image: a file, or (H, W, 3) uint8 of any size and shape.
        classes: names among ``scorer.classes``.
        texts: sentences of your own, such as ``"a photo of a red thing"``; their maps follow those of the classes.
        method: ``"similarity"`` to patches, ``"gradient"``-weighted attention, or attention ``"rollout"``, which knows
            no class and gives one map.
        prompts: the set that describes the classes, ``"local"``, ``"global"`` or ``"hand-crafted"``; default: the one
            that the method's view is scored with, local for patches and global for attention.
        reading: of the similarity, ``"paper"`` (cosine) or ``"released"`` (dot product); default: the scorer's.

    Raises:
        ConfigError: an unknown class, method, set or reading; nothing to show.
        DataError: the file cannot be decoded.

    >>> import hpdval
    >>> model = hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), ["cat", "boat"])
    >>> maps = heatmaps(model, np.zeros((30, 90, 3), np.uint8), ["cat"], texts=["a red thing"])
    >>> maps.values.shape, maps.pixels.shape, maps.names
    ((2, 8, 8), (2, 30, 90), ('cat', 'a red thing'))
    """
    scorer = with_views(scorer)
    if isinstance(classes, str) or isinstance(texts, str):
        raise ConfigError("classes and texts are lists of strings; give [name] for one")
    own_prompts, reading = default_prompts(method), reading or scorer.score_config.reading
    if reading not in READINGS:
        raise ConfigError(f"reading is {reading!r}; use one of {', '.join(READINGS)}")
    unknown = [name for name in classes if name not in scorer.classes]
    if unknown:
        known = ", ".join(scorer.classes[:8]) + (", ..." if len(scorer.classes) > 8 else "")
        raise ConfigError(f"{unknown[0]!r} is no class of this model ({known}); give your own words as texts=[...]")
    if not classes and not texts and method != "rollout":
        raise ConfigError("nothing to show: give classes=[...] or texts=[...]")
    pixels = image if isinstance(image, np.ndarray) else decode(image)
    names = ("attention",) if method == "rollout" else (*classes, *texts)
    chosen = texts_of(scorer, prompts or own_prompts)
    rows = chosen[[scorer.classes.index(name) for name in classes]]
    if texts:
        with torch.no_grad():
            rows = torch.cat([rows, scorer.clip.encode_text(list(texts)).to(rows)])
    view = resize_image(pixels, scorer.clip.image_size, scorer.resize)[None]
    grid = scorer.clip.patch_grid
    shape = (pixels.shape[0], pixels.shape[1])
    values = _values(scorer, view, rows, method, reading)
    return Heatmaps(
        values=values.reshape(len(names), *grid),
        names=names,
        shape=shape,
        box=grid_box(scorer, shape),
        method=method,
        unit=UNITS[reading] if method == "similarity" else "relevance",
    )


def default_prompts(method: str) -> str:
    """Return the set of prompts that the view which a method explains is scored with."""
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; use one of {', '.join(map(repr, METHODS))}")
    return "local" if method == "similarity" else "global"


def _values(scorer: DualViewScorer, view: np.ndarray, rows: torch.Tensor, method: str, reading: str) -> np.ndarray:
    """Return the map of each text (n, P) on a view (1, S, S, 3) uint8."""
    if method == "similarity":
        (features,) = encode(scorer.clip, view, precision=scorer.precision, show=False)
        return patch_scores(features.patches, rows, reading)[0].T.cpu().numpy()
    images = torch.from_numpy(np.array(view))
    if method == "rollout":
        return attention_rollout(scorer.clip, images).cpu().numpy()
    parts = [
        gradient_attention(scorer.clip, images.expand(len(t), -1, -1, -1), t) for t in rows.split(pairs_at_once(scorer))
    ]
    return torch.cat(parts).cpu().numpy()


def pairs_at_once(scorer: DualViewScorer) -> int:
    """Return how many pairs of an image and a class have their gradients at once: memory grows with heads x T^2."""
    rows, columns = scorer.clip.patch_grid
    layers, heads = attention_size(scorer.clip)
    return max(1, ATTENTION_BYTES // (12 * layers * heads * (rows * columns + 1) ** 2))  # three times float32
