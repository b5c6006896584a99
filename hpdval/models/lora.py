"""LoRA: low-rank updates of the attention weights of an image tower, the weights themselves fixed.

Letters: W width of the transformer, r rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hpdval.errors import ConfigError, ModelError

PARTS = 3  # query, key and value lie one below the other in one matrix (3 W, W)


class LowRank(nn.Module):
    """W0 + scale * B A for each of query, key and value (Hu et al., "LoRA", ICLR 2022, eq. 3).

    B (W, r) starts at 0, A (r, W) as a linear layer does, so that nothing is changed at first.

    >>> update = LowRank(12, 4, rank=2)
    >>> torch.equal(update(torch.ones(12, 4)), torch.ones(12, 4))
    True
    """

    def __init__(self, rows: int, columns: int, *, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(PARTS, rank, columns))  # A
        self.up = nn.Parameter(torch.zeros(PARTS, rows // PARTS, rank))  # B
        nn.init.kaiming_uniform_(self.down.view(-1, columns), a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (3 W, W) with its update."""
        return weight + self.scale * (self.up @ self.down).flatten(0, 1).to(weight.dtype)


def add_lora(visual: nn.Module, rank: int, *, scale: float = 1.0, seed: int = 0) -> None:
    """Put an update on query, key and value of every attention of a tower; only the updates require a gradient.

    Args:
        visual: an image tower of open_clip or timm.
        rank: r, at least 1.
        scale: of the update; alpha / r in the paper's words.
        seed: of A.

    Raises:
        ConfigError: a rank below 1.
        ModelError: a tower without such attention.
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}; LoRA needs at least 1")
    found = [(module, name) for path, module in visual.named_modules() if (name := _packed(path, module))]
    if not found:
        raise ModelError(f"a {type(visual).__name__} has no attention with packed query, key and value; use a ViT")
    visual.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, name in found:
            weight = getattr(module, name)
            update = LowRank(*weight.shape, rank=rank, scale=scale).to(weight.device)
            parametrize.register_parametrization(module, name, update)


def merge_lora(visual: nn.Module) -> None:
    """Add all updates to the weights: the tower is then an ordinary one, as fast and as large as before."""
    for module in list(visual.modules()):
        if name := next(
            (name for name in ("in_proj_weight", "weight") if parametrize.is_parametrized(module, name)), ""
        ):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _packed(path: str, module: nn.Module) -> str:
    """Return the name of the weight that holds query, key and value of an attention, or nothing."""
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return "in_proj_weight"
    return "weight" if path.rpartition(".")[2] == "qkv" and isinstance(module, nn.Linear) else ""  # timm's
