"""Hand-crafted prompts, and the two sets of learnable contexts of stage 2.

Letters: C classes, M context tokens, W text transformer width, D joint embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpdval.errors import ConfigError
from hpdval.models.clip import Clip, class_names
from hpdval.models.text import prompt_slots

TEMPLATE = "a photo of a {}."
CONTEXT_STD = 0.02
SETS = ("global", "local")


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


def context_init(clip: Clip, tokens: int, init: str = "normal", seed: int = 0) -> Tensor:
    """Return a context (M, W) to start from: drawn from N(0, 0.02^2), or the token embeddings of words.

    Args:
        clip: gives W and the embeddings.
        tokens: M >= 1.
        init: ``"normal"`` (the paper), or words of exactly M tokens such as ``"a photo of a"`` (the released code).
        seed: of the normal draw, which is the same on every machine.

    Raises:
        ConfigError: M < 1, or words of another number of tokens.
    """
    if tokens < 1:
        raise ConfigError(f"{tokens} context tokens; at least 1 is needed")
    weight = clip.token_embedding.weight.detach()
    if init == "normal":
        draw = torch.randn(tokens, clip.text_width, generator=torch.Generator().manual_seed(seed))
        return (CONTEXT_STD * draw).to(weight)
    with_words, without = clip.tokenise([init, ""])
    _, start, _ = prompt_slots(clip.tokenizer, tokens)  # after [SOS]
    end = int((with_words == without[start]).nonzero()[0])  # at [EOT]
    if end - start != tokens:
        raise ConfigError(
            f"init {init!r} has {end - start} tokens, not the {tokens} of the context; change one, or use 'normal'"
        )
    return weight[with_words[start:end].to(weight.device)].clone()


class HierarchicalPrompts(nn.Module):
    """The two sets of context vectors of stage 2: global t_G = [v_1 .. v_M, w_i], local t_L = [v'_1 .. v'_M, w_i].

    ``forward(clip, fixed)`` gives T_G and T_L, each (C, D), for the classes named at construction; a set that is not in
    ``learned`` stays ``fixed``.  The text tower belongs to ``clip``, which stays outside: only the contexts are
    parameters here.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        tokens: int = 4,
        init: str = "normal",
        seed: int = 0,
        learned: Sequence[str] = SETS,
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

    def forward(self, clip: Clip, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Return T_G and T_L, (C, D) each, not L2-normalised; ``fixed`` (C, D) is T_H."""
        contexts = torch.stack(list(self.contexts.values()))  # (S, M, W): both sets in one go
        texts = dict(zip(self.contexts, clip.encode_prompts(contexts, self.classes), strict=True))
        return texts.get("global", fixed), texts.get("local", fixed)

    def moved(self) -> dict[str, float]:
        """Return how far each context has moved: the root mean square of its change, in units of embeddings."""
        changes = {name: context.detach().cpu() - self.starts[name].cpu() for name, context in self.contexts.items()}
        return {name: float(change.square().mean().sqrt()) for name, change in changes.items()}
