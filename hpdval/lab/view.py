"""What the explorer knows of one model: features of a split, encoded once, and scores and maps made from them.

Letters: N images, C classes, P patches, D joint width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from hpdval.data.dataset import Split
from hpdval.errors import ConfigError
from hpdval.metrics.calibration import best_f1_thresholds
from hpdval.models import ImageFeatures
from hpdval.models.dual_view import both_views, patch_count, patch_scores
from hpdval.scoring.dual_view import DualViewScorer
from hpdval.scoring.features import FeatureStore
from hpdval.scoring.maps import UNITS, Heatmaps, grid_box, heatmaps, texts_of

SLICE = 6e7  # multiplications of a pass between two looks at what the user does: some 20 ms
KEPT = 24  # results of each kind that stay in memory
T = TypeVar("T")


class Pass:
    """Both branches of the scores of all images of a store, (N, C) each, computed slice by slice."""

    def __init__(self, tokens: torch.Tensor, texts: tuple[torch.Tensor, torch.Tensor], k: int, reading: str) -> None:
        self._tokens, self._texts, self._k, self._reading = tokens, texts, k, reading
        shape = len(tokens), len(texts[0])
        self.branches = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.position = 0
        self._images = max(1, int(SLICE / max(1, tokens[:1].numel() * max(8, shape[1]))))

    @property
    def done(self) -> bool:
        """Whether all images have their scores."""
        return self.position >= len(self._tokens)

    @torch.no_grad()
    def step(self) -> None:
        """Compute the next slice."""
        rows = slice(self.position, self.position + self._images)
        tokens = self._tokens[rows].float()
        parts = both_views(tokens[:, 0], tokens[:, 1:], *self._texts, k=self._k, reading=self._reading)
        for whole, part in zip(self.branches, parts, strict=True):
            whole[rows] = part.numpy()
        self.position += self._images

    def scores(self, alpha: float) -> np.ndarray:
        """Return the fused scores (N, C) float32."""
        first, second = self.branches
        return alpha * first + (1 - alpha) * second


class View:
    """One model on one split of a data set: scores for any alpha, k and prompts, and maps, from features in a file.

    ``prompts`` says which texts read the patches: ``local`` as the model scores, ``global`` its global set, or
    ``hand-crafted``, which reads the class token, too.

    Attributes:
        name: how the explorer calls the model.
        patches: P.
        alpha, k: the model's own, k as a number of patches.
        reading: of its scores, ``paper`` or ``released``.
        fit: what the page says of its thresholds.
    """

    def __init__(
        self,
        name: str,
        scorer: DualViewScorer,
        split: Split,
        fitted: Split,
        classes: Sequence[str],
        *,
        fit: str = "",
        show: bool = True,
    ) -> None:
        self.name, self.scorer, self.split, self.fitted, self.fit = name, scorer, split, fitted, fit
        place = {name: i for i, name in enumerate(scorer.classes)}
        self._columns = [place[name] for name in classes]
        options: dict[str, Any] = {"resize": scorer.resize, "precision": scorer.precision, "show": show}
        self.tokens = {
            "shown": FeatureStore.open(scorer.clip, split, **options).tokens,  # (N, 1 + P, D) float16, in its file
            "fitted": FeatureStore.open(scorer.clip, fitted, **options).tokens,
        }
        rows, columns = scorer.clip.patch_grid
        self.patches = rows * columns
        self.reading = scorer.score_config.reading
        self.alpha, self.k = scorer.score_config.alpha, patch_count(scorer.score_config.k, self.patches)
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {}
        self.sentence("a photo")  # makes the tokenizer, for which the user's first sentence would wait

    # -- texts ----------------------------------------------------------------------------------------------------

    def texts(self, prompts: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the texts (C, D) of the class token and of the patches, in the data set's order of classes."""

        def encoded() -> tuple[torch.Tensor, torch.Tensor]:
            both = (
                texts_of(self.scorer, "hand-crafted" if prompts == "hand-crafted" else "global"),
                texts_of(self.scorer, prompts),
            )
            return both[0][self._columns].float().cpu(), both[1][self._columns].float().cpu()

        return self._keep("texts", prompts, encoded)

    @torch.no_grad()
    def sentence(self, text: str) -> torch.Tensor:
        """Return the features (1, D) of a sentence.

        Raises:
            ConfigError: it is too long for the model.
        """
        return self._keep("sentences", text, lambda: self.scorer.clip.encode_text([text]).float().cpu())

    # -- one image ------------------------------------------------------------------------------------------------

    def features(self, image: int) -> ImageFeatures:
        """Return class (1, D) and patch tokens (1, P, D) float32 of an image, as they were stored."""
        tokens = self.tokens["shown"][image : image + 1].float()
        return ImageFeatures(tokens[:, 0], tokens[:, 1:])

    @torch.no_grad()
    def scores(self, image: int, alpha: float, k: int, prompts: str) -> np.ndarray:
        """Return the scores (C,) of one image."""
        features = self.features(image)
        first, second = both_views(features.cls, features.patches, *self.texts(prompts), k=k, reading=self.reading)
        return (alpha * first + (1 - alpha) * second)[0].numpy()

    @torch.no_grad()
    def sentence_score(self, image: int, alpha: float, k: int, text: str) -> float:
        """Return how well a sentence fits one image: both views, as cosines in either reading."""
        features, row = self.features(image), self.sentence(text)
        of_image, of_patches = both_views(features.cls, features.patches, row, row, k=k, reading="paper")
        weight = self._global_weight(alpha)
        return float(weight * of_image + (1 - weight) * of_patches)

    @torch.no_grad()
    def map(self, image: int, one: int | str, method: str, prompts: str, shape: tuple[int, int]) -> Heatmaps:
        """Return the map of a class (its index) or of a sentence on an image of ``shape`` (H, W).

        Similarity comes from the stored patches; the other methods need the encoder, and explain the global score.
        """
        key = image, one, method, prompts
        return self._keep("maps", key, lambda: self._map(image, one, method, prompts, shape))

    def _map(self, image: int, one: int | str, method: str, prompts: str, shape: tuple[int, int]) -> Heatmaps:
        name = one if isinstance(one, str) else self.scorer.classes[self._columns[one]]
        if method != "similarity":  # needs the pixels and the encoder
            classes, sentences = ([], [one]) if isinstance(one, str) else ([name], [])
            chosen = "hand-crafted" if prompts == "hand-crafted" else "global"
            pixels = self.split.image(image)
            return heatmaps(self.scorer, pixels, classes, texts=sentences, method=method, prompts=chosen)
        row = self.sentence(one) if isinstance(one, str) else self.texts(prompts)[1][one : one + 1]
        reading = "paper" if isinstance(one, str) else self.reading
        values = patch_scores(self.features(image).patches, row, reading)
        return Heatmaps(
            values=values[0].T.reshape(1, *self.scorer.clip.patch_grid).numpy(),
            names=(name,),
            shape=shape,
            box=grid_box(self.scorer, shape),
            unit=UNITS[reading],
        )

    # -- the whole split ------------------------------------------------------------------------------------------

    def whole(self, part: str, k: int, prompts: str, text: str = "") -> Pass:
        """Return the pass over all images, ``shown`` or ``fitted``, for classes or a sentence; perhaps begun."""
        row = self.sentence(text) if text else None
        texts = (row, row) if row is not None else self.texts(prompts)
        reading = "paper" if text else self.reading
        key = part, k, text or prompts, bool(text)
        return self._keep("passes", key, lambda: Pass(self.tokens[part], texts, k, reading))

    def ranked(self, alpha: float, k: int, prompts: str) -> np.ndarray | None:
        """Return the scores (N, C) of all images; None while they are not all computed."""
        found = self.whole("shown", k, prompts)
        return self._keep("scores", (alpha, k, prompts), lambda: found.scores(alpha)) if found.done else None

    def ranked_by(self, alpha: float, k: int, text: str) -> np.ndarray | None:
        """Return how well a sentence fits each image (N,); None while they are not all computed."""
        found = self.whole("shown", k, "", text)
        return found.scores(self._global_weight(alpha))[:, 0] if found.done else None

    def thresholds(self, alpha: float, k: int, prompts: str) -> np.ndarray | None:
        """Return the thresholds (C,) of highest F1 on the fitted images; None while these are not all computed."""
        found = self.whole("fitted", k, prompts)
        if not found.done:
            return None
        if not len(self.fitted):
            return np.full(len(self._columns), np.nan)
        labels = self.fitted.targets
        return self._keep("thresholds", (alpha, k, prompts), lambda: best_f1_thresholds(found.scores(alpha), labels))

    def _global_weight(self, alpha: float) -> float:
        return alpha if self.reading == "paper" else 1 - alpha  # the released code weighs the local view

    def _keep(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made before, or make it; of each kind the newest stay."""
        kept = self._kept.setdefault(kind, OrderedDict())
        if key not in kept:
            kept[key] = make()
            if len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        found: T = kept[key]
        return found


def check_classes(scorer: DualViewScorer, classes: Sequence[str]) -> None:
    """Raise ConfigError unless a model knows the classes of a data set, in whatever order."""
    missing = [one for one in classes if one not in scorer.classes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"the model does not know the class {missing[0]!r}{more} of this data set; "
            "give the data set it was trained on, or a Clip, which takes any classes"
        )
