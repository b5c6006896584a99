"""What each rival of HP-DVAL depends on; a config is the ``rival`` of an experiment, and nothing here imports torch.

``kind`` names the run of a rival and its module in ``hpdval.training.rivals``; ``label`` is how tables call it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from hpdval.config import AugmentConfig, Rival, TrainingConfig, choice, number
from hpdval.errors import ConfigError

FEATURES = ("float16", "float16", "bfloat16", "float32")  # the default, then what may be chosen
FORMS = ("corrected", "released")  # of LMPT's class-specific embedding loss
SOURCES = ("clip", "random")  # of CPRFL's class embeddings; anything else is a file of word vectors


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(Rival):
    """Zero-shot CLIP with the mean of many templates' embeddings (Radford et al., ICML 2021, section 3.1.4)."""

    kind: ClassVar[str] = "ensemble"
    templates: str = choice("imagenet", "simple", "imagenet")

    @property
    def label(self) -> str:
        """How tables call it."""
        return "prompt ensemble"


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(Rival):
    """k nearest neighbours on the features of a frozen encoder: the training images are the model."""

    kind: ClassVar[str] = "neighbours"
    k: int = number(20, 1)
    temperature: float = number(0.07, above=0.0)
    features: str = choice(*FEATURES)

    @property
    def label(self) -> str:
        """How tables call it."""
        return "kNN"


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(TrainingConfig, Rival):
    """What rivals on a frozen encoder share: features are encoded once, without augmentation, and kept."""

    features: str = choice(*FEATURES)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(FrozenConfig):
    """A linear classifier or an MLP on the global embedding."""

    kind: ClassVar[str] = "probe"
    hidden: int = number(0, 0, 100_000)  # 0: linear

    @property
    def label(self) -> str:
        """How tables call it."""
        return "MLP probe" if self.hidden else "linear probe"


@dataclass(frozen=True, kw_only=True)
class CoopConfig(FrozenConfig):
    """CoOp (Zhou et al., IJCV 2022): context vectors before the class name, shared or one set for each class."""

    kind: ClassVar[str] = "coop"
    contexts: int = number(16, 1, 70)
    init: str = "normal"
    per_class: bool = False

    @property
    def label(self) -> str:
        """How tables call it."""
        return "CoOp, class-specific" if self.per_class else "CoOp"


@dataclass(frozen=True, kw_only=True)
class CocoopConfig(FrozenConfig):
    """CoCoOp (Zhou et al., CVPR 2022): contexts that a small network shifts for each image."""

    kind: ClassVar[str] = "cocoop"
    contexts: int = number(4, 1, 70)
    init: str = "a photo of a"
    reduction: int = number(16, 1)  # the network's hidden width is D / reduction

    @property
    def label(self) -> str:
        """How tables call it."""
        return "CoCoOp"


@dataclass(frozen=True, kw_only=True)
class LmptConfig(CoopConfig):
    """LMPT (Xia et al., ALVR 2024): CoOp with a class-specific embedding loss that pulls prompts to captions.

    L = mix * L_cls + (1 - mix) * L_cse.
    """

    kind: ClassVar[str] = "lmpt"
    contexts: int = number(4, 1, 70)
    init: str = "a photo of a"
    per_class: bool = True
    mix: float = number(0.5, 0.0, 1.0)
    margin: float = number(0.2, above=0.0)
    gamma: float = number(2.0, 0.0)
    form: str = choice("corrected", *FORMS)

    @property
    def label(self) -> str:
        """How tables call it."""
        return "LMPT" if self.form == "corrected" else "LMPT, released sign"


@dataclass(frozen=True, kw_only=True)
class DualCoopConfig(FrozenConfig):
    """DualCoOp (Sun et al., NeurIPS 2022): two prompts for each class, compared region by region."""

    kind: ClassVar[str] = "dualcoop"
    contexts: int = number(16, 1, 70)
    init: str = "normal"
    per_class: bool = True
    temperature: float = number(0.05, above=0.0)  # of the cosines that weigh regions
    logit_scale: float = number(100.0, above=0.0)  # of cosines in the binary softmax

    @property
    def label(self) -> str:
        """How tables call it."""
        return "DualCoOp"


@dataclass(frozen=True, kw_only=True)
class TunedConfig(TrainingConfig, Rival):
    """What rivals share whose encoder learns, on augmented views.

    ``backbone`` is a CNN of timm by name, with ``weights`` from a file or ``"timm"``; None is CLIP's image tower.
    """

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = number(0, 0, 256)
    backbone: str | None = None
    weights: str | None = None
    image_size: int = number(448, 32)  # of a backbone; CLIP's tower has its own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.backbone is None:
            raise ConfigError(f"weights is {self.weights!r}, but there is no backbone; name one, or leave weights out")
        if self.backbone is not None and self.precision == "pure-bfloat16":
            raise ConfigError("a backbone has batch normalisation, which needs float32; use precision='bfloat16'")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(TunedConfig):
    """The whole encoder, or low-rank updates of its attention (LoRA, Hu et al., ICLR 2022), under a classifier.

    ``head``: ``"linear"`` learns along and starts as the zero-shot classifier, or at 0 on a backbone; ``"text"``
    compares with the fixed embeddings of the hand-crafted prompts.
    """

    kind: ClassVar[str] = "finetune"
    head: str = choice("linear", "linear", "text")
    rank: int = number(0, 0, 1024)  # of LoRA; 0: all weights of the image tower learn
    lora_scale: float = number(1.0, above=0.0)  # of the low-rank update

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is not None and (self.rank or self.head == "text"):
            raise ConfigError("a backbone has neither LoRA nor texts; set rank=0 and head='linear', or backbone=None")

    @property
    def label(self) -> str:
        """How tables call it."""
        sampled = ", class-aware" if self.sampling == "class-aware" else ""
        return ("LoRA" if self.rank else "fine-tuning") + sampled


@dataclass(frozen=True, kw_only=True)
class CprflConfig(TunedConfig):
    """CPRFL (Yan et al., ACM MM 2024): category prompts that visual tokens refine; see ``hpdval.models.cprfl``.

    ``tune_encoder=False`` keeps the encoder fixed (views are then drawn all the same).
    """

    kind: ClassVar[str] = "cprfl"
    tune_encoder: bool = True
    semantic: str = "clip"  # one of SOURCES, or a text file of GloVe or Word2Vec
    width: int = number(2048, 1)
    tau: float = number(0.5, above=0.0)
    heads: int = number(8, 1)
    head_width: int = number(512, 1)
    dropout: float = number(0.1, 0.0, below=1.0)
    initialise: bool = True  # False: without Prompt Initialisation
    interact: bool = True  # False: without Visual-Semantic Interaction
    residual: bool = False  # True: residual connections, which neither paper nor released code has

    @property
    def stochastic(self) -> bool:
        """Whether an update draws at random: dropout."""
        return self.dropout > 0

    @property
    def label(self) -> str:
        """How tables call it."""
        return "CPRFL"
