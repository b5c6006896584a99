"""Heads: features of images to scores of classes, by weights of their own instead of texts alone.

A head is a module whose ``forward(features, encoder)`` gives scores (B, C); what needs more than features, such as a
text tower, takes it from the encoder, which is not part of the head.

Letters: B images, N training images, C classes, P patches, D width of the features, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpdval.errors import ConfigError
from hpdval.models.cprfl import Cprfl
from hpdval.models.towers import ImageFeatures


class Classifier(nn.Module):
    """A linear classifier, or an MLP with one hidden layer, on the L2-normalised global embedding.

    z = W f + b;  with H hidden units z = W GELU(V f + c) + b;  f is f_cls divided by its norm.

    A linear one starts at 0; :meth:`start_from` lets it start as the zero-shot classifier (Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022).  An MLP starts at random, with 0 in its last layer.

    Args:
        width: D.
        classes: C.
        hidden: H; 0 is linear.
        seed: of the random weights.

    >>> head = Classifier(512, 20)
    >>> head(ImageFeatures(torch.ones(2, 512), torch.ones(2, 49, 512))).shape
    torch.Size([2, 20])
    """

    def __init__(self, width: int, classes: int, *, hidden: int = 0, seed: int = 0) -> None:
        super().__init__()
        if hidden < 0:
            raise ConfigError(f"hidden is {hidden}; give a number of units, or 0 for a linear classifier")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
            self.layers = nn.Sequential(*layers, nn.Linear(hidden or width, classes))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the logits."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    @torch.no_grad()
    def start_from(self, text: Tensor) -> None:
        """Let a linear classifier start with the L2-normalised text embeddings (C, D): z are then cosines."""
        self.last.weight.copy_(F.normalize(text.float(), dim=-1))

    def forward(self, features: ImageFeatures, encoder: nn.Module | None = None) -> Tensor:
        """Return logits (B, C) float32."""
        return self.layers(F.normalize(features.cls.float(), dim=-1))


class NearestNeighbours(nn.Module):
    """k nearest training images vote for their labels, each with weight exp(cosine / temperature).

    s_i = sum over the k nearest n of w_n y_ni / sum of w_n;  w_n = exp((cos(f, f_n) - 1) / temperature)
    (the weighted vote of Wu et al., CVPR 2018, for several labels).  Nothing is trained.

    Args:
        bank: f_n (N, D), L2-normalised here.
        targets: y (N, C) of 0 and 1.
        k: neighbours; more than N are all.
        temperature: above 0.

    >>> knn = NearestNeighbours(torch.eye(2), torch.tensor([[1, 0], [1, 1]]), k=2)
    >>> knn(ImageFeatures(torch.ones(1, 2), torch.ones(1, 4, 2)))
    tensor([[1.0000, 0.5000]])
    """

    bank: Tensor
    targets: Tensor

    def __init__(self, bank: Tensor, targets: Tensor, *, k: int = 20, temperature: float = 0.07) -> None:
        super().__init__()
        if k < 1 or not temperature > 0:
            raise ConfigError(f"k is {k}, temperature {temperature}; give k of at least 1 and a temperature above 0")
        self.k, self.temperature = k, temperature
        self.register_buffer("bank", F.normalize(bank.float(), dim=-1))
        self.register_buffer("targets", targets.float())

    def forward(self, features: ImageFeatures, encoder: nn.Module | None = None) -> Tensor:
        """Return the share (B, C) of the weighted vote for each class, in [0, 1]."""
        cosines = F.normalize(features.cls.float(), dim=-1) @ self.bank.T  # (B, N)
        near, rows = cosines.topk(min(self.k, len(self.bank)), dim=-1)  # (B, k)
        weights = ((near - 1) / self.temperature).softmax(dim=-1)
        return torch.einsum("bk,bkc->bc", weights, self.targets[rows])


class CategoryPrompts(nn.Module):
    """CPRFL (:class:`hpdval.models.cprfl.Cprfl`) on an encoder's patches, or on the places of a CNN's map."""

    def __init__(self, model: Cprfl) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: ImageFeatures, encoder: nn.Module | None = None) -> Tensor:
        """Return logits (B, C) float32."""
        return self.model(features.patches.float())
