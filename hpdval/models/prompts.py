"""Hand-crafted prompts and their ensembles, the two sets of learnable contexts of stage 2, and CoOp's one.

Letters: C classes, S sets of M context tokens, W text transformer width, D joint embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpdval.errors import ConfigError
from hpdval.models.clip import Clip, class_names
from hpdval.models.text import prompt_slots

TEMPLATE = "a photo of a {}."
CONTEXT_STD = 0.02
SETS = ("global", "local")
TEMPLATE_SETS: dict[str, tuple[str, ...]] = {  # what CLIP's authors published, for ensemble()
    "single": (TEMPLATE,),
    "simple": tuple(write("{}") for write in open_clip.SIMPLE_IMAGENET_TEMPLATES),
    "imagenet": tuple(write("{}") for write in open_clip.OPENAI_IMAGENET_TEMPLATES),
}


def class_prompts(classes: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """Return one prompt per class; underscores of a name become spaces.

    >>> class_prompts(["traffic_light"])
    ['a photo of a traffic light.']
    """
    if template.count("{}") != 1:
        raise ConfigError(f"template is {template!r}; it needs one {{}} where the class name goes")
    return [template.replace("{}", name) for name in class_names(classes)]


@torch.no_grad()
def hand_crafted(clip: Clip, classes: Sequence[str], template: str = TEMPLATE) -> Tensor:
    """Return T_H, the fixed text features (C, D) of the template's prompts, not L2-normalised."""
    return clip.encode_text(class_prompts(classes, template))


@torch.no_grad()
def ensemble(clip: Clip, classes: Sequence[str], templates: Sequence[str] = TEMPLATE_SETS["imagenet"]) -> Tensor:
    """Return the prompt ensemble T (C, D): the mean over templates of L2-normalised features, normalised again.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.4.

    Args:
        templates: each with one {} where the class name goes; see :data:`TEMPLATE_SETS`.

    Raises:
        ConfigError: no templates, or one without its {}.
    """
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"templates is {templates!r}; give a non-empty list, or one of {', '.join(TEMPLATE_SETS)}")
    features = [F.normalize(hand_crafted(clip, classes, template), dim=-1) for template in templates]
    return F.normalize(torch.stack(features).mean(dim=0), dim=-1)


def context_init(clip: Clip, tokens: int, init: str = "normal", seed: int = 0, *, classes: int | None = None) -> Tensor:
    """Return a context (M, W) to start from: drawn from N(0, 0.02^2), or the token embeddings of words.

    Args:
        clip: gives W and the embeddings.
        tokens: M >= 1.
        init: ``"normal"`` (the paper), or words of exactly M tokens such as ``"a photo of a"`` (the released code).
        seed: of the normal draw, which is the same on every machine.
        classes: C, for one context of each class (C, M, W): drawn one by one, or the same words.

    Raises:
        ConfigError: M < 1, or words of another number of tokens.
    """
    if tokens < 1:
        raise ConfigError(f"{tokens} context tokens; at least 1 is needed")
    weight = clip.token_embedding.weight.detach()
    if init == "normal":
        shape = (tokens, clip.text_width) if classes is None else (classes, tokens, clip.text_width)
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return (CONTEXT_STD * draw).to(weight)
    with_words, without = clip.tokenise([init, ""])
    _, start, _ = prompt_slots(clip.tokenizer, tokens)  # after [SOS]
    end = int((with_words == without[start]).nonzero()[0])  # at [EOT]
    if end - start != tokens:
        raise ConfigError(
            f"init {init!r} has {end - start} tokens, not the {tokens} of the context; change one, or use 'normal'"
        )
    context = weight[with_words[start:end].to(weight.device)].clone()
    return context if classes is None else context.repeat(classes, 1, 1)


def pooling_weights(class_counts: Tensor, shrinkage: float) -> Tensor:
    """Return how far the context of each class may leave the shared one: w_i = n_i / (n_i + m), (C,) float64.

    Partial pooling, as an empirical Bayes estimate of a group's mean shrinks it towards that of all groups (Gelman and
    Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models", 2007, eq. 12.1).

    Args:
        class_counts: n_i >= 0, training positives (C,); a class that has none gets w_i = 0.
        shrinkage: m >= 0, pseudo-counts of the shared context.  With m = 0 every class has a context of its own; at
            infinity all share one.

    Raises:
        ConfigError: counts or m negative or NaN, or counts that are not (C,).

    >>> pooling_weights(torch.tensor([0, 5, 45]), 5.0)
    tensor([0.0000, 0.5000, 0.9000], dtype=torch.float64)
    """
    if not shrinkage >= 0:
        raise ConfigError(f"shrinkage is {shrinkage!r}; it counts pseudo-observations, use a number of at least 0")
    counts = class_counts.detach().cpu().double()
    if counts.ndim != 1 or not bool((counts >= 0).all()):
        raise ConfigError(f"class_counts must be (C,) and at least 0, got {class_counts.tolist()!r:.80}")
    return torch.where(counts > 0, counts / (counts + shrinkage), 0.0)


class HierarchicalPrompts(nn.Module):
    """The two sets of context vectors of stage 2: global t_G = [v_1 .. v_M, w_i], local t_L = [v'_1 .. v'_M, w_i].

    ``forward(clip, fixed)`` gives T_G and T_L, each (C, D), for the classes named at construction; a set that is not in
    ``learned`` stays ``fixed``.  The text tower belongs to ``clip``, which stays outside: only the contexts are
    parameters here.

    With a ``shrinkage`` m the prompts adapt to how rare a class is: the context of class i is v + w_i delta_i in either
    set, with a residual delta_i (M, W) that starts at zero and w_i = n_i / (n_i + m) (:func:`pooling_weights`).  None
    is the paper's method, one context for all classes.

    Raises:
        ConfigError: a set that does not exist, contexts that cannot be made, or a shrinkage without counts (C,).
    """

    pooling: Tensor  # w (C, 1, 1)

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        tokens: int = 4,
        init: str = "normal",
        seed: int = 0,
        learned: Sequence[str] = SETS,
        class_counts: Tensor | None = None,
        shrinkage: float | None = None,
    ) -> None:
        super().__init__()
        if not learned or not set(learned) <= set(SETS):
            raise ConfigError(f"learned is {list(learned)!r}; choose from {', '.join(SETS)}")
        self.classes = tuple(classes)
        starts = {
            name: context_init(clip, tokens, init, 2 * seed + i) for i, name in enumerate(SETS) if name in learned
        }
        self.contexts = nn.ParameterDict({name: nn.Parameter(start) for name, start in starts.items()})  # (M, W) each
        self.starts = {name: start.clone() for name, start in starts.items()}
        self.residuals = nn.ParameterDict()  # delta (C, M, W) each
        if shrinkage is None:
            return
        shape = None if class_counts is None else tuple(class_counts.shape)
        if class_counts is None or shape != (len(self.classes),):
            raise ConfigError(f"class_counts must be ({len(self.classes)},) for a shrinkage, got {shape}")
        pooling = pooling_weights(class_counts, shrinkage)
        for name, start in starts.items():
            self.residuals[name] = nn.Parameter(start.new_zeros(len(self.classes), *start.shape))
        # w stands outside delta: AdamW's step does not depend on the scale of a gradient, but what it moves is w delta
        self.register_buffer("pooling", pooling.to(next(iter(starts.values())))[:, None, None], persistent=False)

    def forward(self, clip: Clip, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return T_G and T_L, (C, D) each, not L2-normalised; ``fixed`` (C, D) is T_H."""
        contexts = torch.stack(list(self.contexts.values()))  # (S, M, W): both sets in one go
        if self.residuals:
            contexts = contexts[:, None] + torch.stack(list(self._pooled().values()))  # (S, C, M, W)
        texts = dict(zip(self.contexts, clip.encode_prompts(contexts, self.classes), strict=True))
        return texts.get("global", fixed), texts.get("local", fixed)

    def named_contexts(self) -> dict[str, Tensor]:
        """Return the contexts (M, W) by set, and of prompts that adapt ``"global residual"``, w_i delta_i (C, M, W)."""
        return dict(self.contexts.items()) | {f"{name} residual": value for name, value in self._pooled().items()}

    def moved(self) -> dict[str, float]:
        """Return how far each context has moved: the root mean square of its change, in units of embeddings.

        Residuals are named as in :meth:`named_contexts`; theirs is that of w_i delta_i over all classes.
        """
        start = {name: value.cpu() for name, value in self.starts.items()}
        now = {name: value.detach().cpu() for name, value in self.named_contexts().items()}
        changes = {name: value - start[name] if name in start else value for name, value in now.items()}
        return {name: _rms(change) for name, change in changes.items()}

    def _pooled(self) -> dict[str, Tensor]:
        return {name: self.pooling * residual for name, residual in self.residuals.items()}


class PromptContexts(nn.Module):
    """CoOp's prompts [v_1 .. v_M, w_i]: one context that all classes share, or one for each class.

    Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022: unified and class-specific contexts,
    the class name at the end.  The text tower stays outside, as for :class:`HierarchicalPrompts`.

    Args:
        tokens, init, seed: of :func:`context_init`; the paper has 16 and ``"normal"``.
        per_class: one context for each class (the paper's CSC).
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        tokens: int = 16,
        init: str = "normal",
        seed: int = 0,
        per_class: bool = False,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        start = context_init(clip, tokens, init, seed, classes=len(self.classes) if per_class else None)
        self.contexts = nn.Parameter(start)  # (M, W) or (C, M, W)
        self.start = start.clone()

    def forward(self, clip: Clip) -> Tensor:
        """Return T (C, D), not L2-normalised."""
        return clip.encode_prompts(self.contexts[None], self.classes)[0]

    def moved(self) -> dict[str, float]:
        """Return ``context``: the root mean square of its change, in units of embeddings."""
        return {"context": _rms(self.contexts.detach().cpu() - self.start.cpu())}


def _rms(change: Tensor) -> float:
    return float(change.square().mean().sqrt())
