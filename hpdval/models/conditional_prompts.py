"""CoCoOp: prompts whose context depends on the image.

Letters: B images, C classes, D joint embedding width, M context tokens, W text transformer width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hpdval.errors import ConfigError
from hpdval.models.clip import Clip
from hpdval.models.prompts import context_init
from hpdval.models.towers import ImageFeatures

CHUNK = 1024  # prompts encoded at once; the gradient of more would need gigabytes of hidden states


class ConditionalPrompts(nn.Module):
    """Prompts [v_1(x) .. v_M(x), w_i] with v_m(x) = v_m + h(f), where f is the L2-normalised global feature of image x.

    Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, section 3.2; h, the Meta-Net,
    is Linear(D, D / reduction) - ReLU - Linear(D / reduction, W).  Every image has text features of its own, so the
    text tower runs B times for a batch, also to score.  It stays outside; the context and the Meta-Net are here.

    Args:
        clip: gives D, W and the embeddings.
        classes: C names.
        tokens, init, seed: of :func:`context_init`; the paper starts from ``"a photo of a"``.
        reduction: in 1 .. D; the paper has 16.

    Raises:
        ConfigError: a reduction out of range, or a context that cannot be made.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        tokens: int = 4,
        init: str = "a photo of a",
        reduction: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = clip.embed_dim
        if not isinstance(reduction, int) or isinstance(reduction, bool) or not 1 <= reduction <= width:
            raise ConfigError(f"reduction is {reduction!r}; use an integer in 1 .. {width}")
        self.classes = tuple(classes)
        start = context_init(clip, tokens, init, seed)
        self.context = nn.Parameter(start)  # (M, W)
        self.start = start.clone()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = width // reduction
            self.meta_net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, clip.text_width))
        self.meta_net.to(start)

    def contexts(self, cls: Tensor) -> Tensor:
        """Return the context of every image, (B, M, W), of global features (B, D)."""
        f = F.normalize(_at_least_float32(cls), dim=-1).to(self.context)
        return self.context + self.meta_net(f)[:, None]

    def forward(self, features: ImageFeatures, clip: Clip) -> Tensor:
        """Return scores (B, C), at least float32: the cosine of f_cls with each of the image's own text features.

        Memory does not grow with B C: ``CHUNK`` prompts are encoded at a time, and a backward pass encodes them again.
        """
        parts = features.cls.split(max(1, CHUNK // len(self.classes)))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._cosines(part, clip) for part in parts])
        return torch.cat([checkpoint(self._cosines, part, clip, use_reentrant=False) for part in parts])

    def moved(self) -> dict[str, float]:
        """Return ``context``: the root mean square of the change of v (M, W), in units of embeddings."""
        return {"context": float((self.context.detach().cpu() - self.start.cpu()).square().mean().sqrt())}

    def _cosines(self, cls: Tensor, clip: Clip) -> Tensor:
        texts = clip.encode_prompts(self.contexts(cls), self.classes)  # (B, C, D)
        with torch.autocast(cls.device.type, enabled=False):  # in half precision ties cost 0.4 AP points
            cls, texts = (F.normalize(_at_least_float32(x), dim=-1) for x in (cls, texts))
            return (texts @ cls[..., None])[..., 0]  # (B, C)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
