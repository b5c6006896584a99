"""CPRFL (Yan et al., "Category-Prompt Refined Feature Learning", ACM MM 2024): a prompt per class, refined by images.

Letters: B images, C classes, P patches or places of a feature map, F width of the features, T width of the class
embeddings, d joint width, t hidden width of the Prompt Initialisation, H heads, h width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpdval.errors import ConfigError


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(h)) v, of (B, H, Q, h), (B, H, K, h), (B, H, K, h): (B, H, Q, h).

    >>> one = torch.ones(1, 1, 2, 4)
    >>> attention(one[:, :, :1], one, torch.tensor([1.0, 3.0]).view(1, 1, 2, 1))
    tensor([[[[2.]]]])
    """
    return F.scaled_dot_product_attention(query, key, value)


def category_logits(prompts: Tensor, refined: Tensor) -> Tensor:
    """Return s_i = <p_i, p'_i> (B, C) of prompts P (C, d) and refined prompts P' (B, C, d); sigmoid(s_i) is the class's
    probability.

    Gradients reach a prompt along two paths, as the classifier p_i and through p'_i.  Logits are float32 also for
    half-precision inputs and under autocast.
    """
    with torch.autocast(refined.device.type, enabled=False):
        prompts, refined = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (prompts, refined))
        return torch.einsum("cd,bcd->bc", prompts, refined)


class PromptInitialisation(nn.Sequential):
    """Prompt Initialisation: P = GELU(W W1 + b1) W2 + b2, from class embeddings W (C, T) to prompts P (C, d).

    GELU is the exact one; the hidden width is t = tau * d.

    >>> PromptInitialisation(512, 2048)(torch.zeros(20, 512)).shape
    torch.Size([20, 2048])
    """

    def __init__(self, embedding_width: int, width: int, *, tau: float = 0.5) -> None:
        hidden = int(tau * width) if 0 < tau < float("inf") else 0  # NaN, too
        if hidden < 1:
            raise ConfigError(f"tau is {tau!r}; it must be positive, and tau * d, the hidden width, at least 1")
        super().__init__(nn.Linear(embedding_width, hidden), nn.GELU(), nn.Linear(hidden, width))


class VisualSemanticInteraction(nn.Module):
    """Visual-Semantic Interaction: one Transformer encoder layer over [visual tokens; P], read at the prompts.

    X = [tokens; P];  Y = Attention(LN(X));  P' = FFN(LN(Y)) at the prompts;  FFN: d - hidden, GELU, hidden - d.

    Neither the paper (eq. 4-5) nor its released code has residual connections; ``residual=True`` is the usual block,
    Y = X + Attention(LN(X)) and P' = Y + FFN(LN(Y)).  Nothing reads the layer's output at the visual tokens, so it is
    not computed.

    Args:
        width: d.
        heads: H.
        head_width: h; H * h need not be d.
        hidden: of the feed-forward network; None takes d.
        residual: the usual block.
        dropout: after the attention, and twice in the feed-forward network.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        head_width: int = 512,
        hidden: int | None = None,
        residual: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        for name, value in (("width", width), ("heads", heads), ("head_width", head_width), ("hidden", hidden)):
            _check_count(name, value)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout!r}; use a share in [0, 1)")
        self.heads, self.residual = heads, residual
        inner = heads * head_width
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(dropout))
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Return P' (B, C, d) of visual tokens (B, P, d) and prompts (C, d)."""
        sequence = torch.cat([tokens, prompts.expand(len(tokens), -1, -1)], dim=1)  # (B, P + C, d)
        return self.encode(sequence, tokens.shape[1])

    def encode(self, sequence: Tensor, first: int = 0) -> Tensor:
        """Return the layer's output (B, N - first, d) at the positions from ``first`` on of a sequence (B, N, d)."""
        x = self.norm_attention(sequence)
        key, value = self.key_value(x).chunk(2, dim=-1)
        query = self.query(x[:, first:])
        y = attention(*(z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (query, key, value)))
        y = self.out(y.transpose(1, 2).flatten(2))  # (B, N - first, d)
        if self.residual:
            y = y + sequence[:, first:]
        z = self.feed(self.norm_feed(y))
        return y + z if self.residual else z


class Cprfl(nn.Module):
    """CPRFL's head: features of images to logits, through category prompts that each image refines.

    V = features W_v + b_v;  P = PI(W);  P' = VSI(V, P);  s_i = <p_i, p'_i>.

    The class embeddings W are a buffer: they stay as they are, and a saved model needs neither CLIP nor a file of word
    vectors.  The defaults of the widths are the released configuration for ResNet-101.

    Args:
        embeddings: W (C, T), from :func:`hpdval.models.semantic.class_embeddings`.
        features: F, the width of the features: ``Backbone.width``, or D of a ViT's projected patches.
        width: d.
        tau: hidden width of the Prompt Initialisation as a share of d.
        heads, head_width, hidden, residual, dropout: of the :class:`VisualSemanticInteraction`; the released training
            has dropout 0.1, which draws from torch's global generator.
        initialise: False is the ablation without Prompt Initialisation: one linear map from T to d takes its place, as
            in the released code's switch.
        interact: False is the ablation without Visual-Semantic Interaction: every p'_i is the mean visual token.
        seed: of the starting weights.

    Raises:
        ConfigError: embeddings that are not (C, T) or not finite, or a width, share or dropout out of range.

    >>> model = Cprfl(torch.randn(20, 512), 768, width=64, heads=2, head_width=16)
    >>> model(torch.randn(2, 196, 768)).shape, model(torch.randn(2, 768, 14, 14)).shape
    (torch.Size([2, 20]), torch.Size([2, 20]))
    """

    embeddings: Tensor  # (C, T)

    def __init__(
        self,
        embeddings: Tensor,
        features: int,
        *,
        width: int = 2048,
        tau: float = 0.5,
        heads: int = 8,
        head_width: int = 512,
        hidden: int | None = None,
        initialise: bool = True,
        interact: bool = True,
        residual: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if embeddings.ndim != 2 or not embeddings.numel() or not bool(torch.isfinite(embeddings).all()):
            raise ConfigError(f"embeddings must be (C, T) and finite, got {tuple(embeddings.shape)}")
        _check_count("features", features)
        _check_count("width", width)
        self.register_buffer("embeddings", embeddings.detach().float().clone())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.visual = nn.Linear(features, width)
            embedding_width = embeddings.shape[1]
            self.initialisation: nn.Module = (
                PromptInitialisation(embedding_width, width, tau=tau)
                if initialise
                else nn.Linear(embedding_width, width)
            )
            self.interaction: nn.Module | None = None
            if interact:
                self.interaction = VisualSemanticInteraction(
                    width, heads=heads, head_width=head_width, hidden=hidden, residual=residual, dropout=dropout
                )

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) float32 of patch tokens (B, P, F) or of a feature map (B, F, h, w).

        Raises:
            ConfigError: features of another shape.
        """
        prompts = self.prompts()
        return category_logits(prompts, self.refine(features, prompts))

    def prompts(self) -> Tensor:
        """Return the category prompts P (C, d)."""
        return self.initialisation(self.embeddings)

    def refine(self, features: Tensor, prompts: Tensor) -> Tensor:
        """Return P' (B, C, d): what prompts (C, d) become in each image, whose features are as in :meth:`forward`."""
        tokens = self.visual(_as_tokens(features, self.visual.in_features))  # (B, P, d)
        if self.interaction is None:
            return tokens.mean(dim=1, keepdim=True).expand(-1, len(prompts), -1)
        return self.interaction(tokens, prompts)


def _as_tokens(features: Tensor, width: int) -> Tensor:
    """Return features as (B, P, F); a feature map is read row by row."""
    tokens = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    if tokens.ndim != 3 or tokens.shape[2] != width or not tokens.shape[1]:
        raise ConfigError(
            f"features must be (B, P, {width}) or (B, {width}, h, w) for this model, got {tuple(features.shape)}"
        )
    return tokens


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; use an integer of at least 1")
