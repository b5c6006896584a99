"""What a run depends on, as frozen dataclasses whose fields know their ranges; nothing here imports torch.

An :class:`Experiment` is data: code reads its fields and never its name.  Every field can be overridden by a scalar
under its dotted name, and a wrong name, type or value is refused in one line before anything starts.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from hpdval.errors import ConfigError, shown

T = TypeVar("T")


def number(
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """Declare a finite numeric field with ``low <= value <= high`` and ``above < value < below``."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "below": below})


def choice(default: str | None, *allowed: str | None, fixed: tuple[str, ...] = ()) -> Any:
    """Declare a string field that takes one of ``allowed``; what is ``fixed`` only a recipe can choose."""
    return field(default=default, metadata={"choices": allowed, "fixed": fixed})


class Checked:
    """A dataclass whose fields are checked for type and range when it is made."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            _check(type(self).__name__, item.name, getattr(self, item.name), hints[item.name], item.metadata)


def allowed_types(hint: Any) -> tuple[type, ...]:
    """Return the types a field may hold: those of a union, or the one."""
    return tuple(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _check(owner: str, name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> None:
    allowed = allowed_types(hint)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if type(value) not in allowed and not (float in allowed and whole) and not isinstance(value, allowed):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ConfigError(f"{owner}.{name} is {shown(value)}; it must be {names}")
    if isinstance(value, bool) and bool not in allowed:
        raise ConfigError(f"{owner}.{name} is {value!r}; it must be a number, not a truth value")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{owner}.{name} is {shown(value)}; choose one of {', '.join(map(repr, choices))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and "low" in metadata:
        low, high, above, below = (metadata[bound] for bound in ("low", "high", "above", "below"))
        if not (abs(value) <= sys.float_info.max and low <= value <= high and above < value < below):  # not of NaN
            lower = f"more than {above:g}" if above > -math.inf else f"at least {low:g}" if low > -math.inf else ""
            upper = f"less than {below:g}" if below < math.inf else f"at most {high:g}" if high < math.inf else ""
            wanted = " and ".join(filter(None, (lower, upper))) or "finite"
            raise ConfigError(f"{owner}.{name} is {shown(value)}; it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Checked):
    """Dual-view score (HP-DVAL eq. 4-5): ``alpha`` weighs the view ``reading`` says; ``k`` patches are averaged."""

    alpha: float = number(0.4, 0.0, 1.0)
    k: int | float = number(32 / 196, above=0)  # an int counts patches; a float in (0, 1] is a fraction of them
    reading: str = choice("paper", "paper", "released")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.k, float) and self.k > 1:
            raise ConfigError(f"ScoreConfig.k is {self.k}; give a whole number of patches or a share of at most 1")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """Training views: horizontal flip, RandAugment (operations of one magnitude), Cutout of a share of the side."""

    flip: bool = True
    randaugment_ops: int = number(2, 0, 10)
    randaugment_magnitude: int = number(9, 0, 30)
    cutout: float = number(0.5, 0.0, 1.0)


LOSS_NAMES = (  # those of hpdval.losses.LOSSES, which needs torch
    "bce", "multilabel_soft_margin", "focal", "asl", "cb_focal",
    "ldam", "logit_adjustment", "db", "db_focal", "db_star",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """The classification loss by its name in ``hpdval.losses.LOSSES``, and its constants.

    Which constants a loss reads is said in its own docstring; None leaves the loss's own default, and a constant that a
    loss does not have must stay at its default here.
    """

    name: str = choice("db_focal", *LOSS_NAMES)
    tau: float = number(0.1, 0.0)
    beta: float = number(10.0)
    mu: float = number(0.3)
    kappa: float = number(0.05, 0.0)
    lam: float = number(5.0, above=0.0)
    gamma: float | None = number(None, 0.0)
    pos_scale: float | None = number(None, above=0.0)
    nu: str | None = choice(None, None, "released", "printed")
    denominator: str | None = choice(None, None, "positives", "all")
    weights: str | float | None = number(None, 0.0)  # a number, or "frequency"
    focal: str | None = choice(None, None, "none", "element", "scalar")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.weights, str) and self.weights != "frequency":
            raise ConfigError(f"LossConfig.weights is {self.weights!r}; give a number, 'frequency' or None")
        if self.gamma is not None and 0 < self.gamma < 1:
            raise ConfigError(f"LossConfig.gamma is {self.gamma}; it must be 0 or at least 1")


PRECISIONS = ("float32", "bfloat16", "pure-bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """Optimisation of one stage; there is no weight decay on one-dimensional parameters."""

    optimizer: str = choice("adamw", "adamw", "adam", "sgd")  # sgd has a momentum of 0.9
    sampling: str = choice("uniform", "uniform", "class-aware")  # class-aware: three images of one class after another
    epochs: int = number(20, 1, 100_000)
    batch_size: int = number(32, 1)
    accumulate: int = number(1, 1)  # micro-batches whose gradients are averaged before an update
    lr: float = number(1e-5, above=0.0, high=10.0)
    weight_decay: float = number(1e-4, 0.0)
    schedule: str = choice("constant", "constant", "one-cycle")
    warmup: float = number(0.1, 0.0, 1.0)  # share of the one-cycle schedule that rises
    ema_decay: float = number(
        0.0, 0.0, below=1.0
    )  # 0: no moving average; otherwise the averaged weights are the result
    clip_norm: float = number(0.0, 0.0)  # 0: gradients are not clipped
    scale: float = number(20.0, above=0.0)  # start of the learnable scale of scores in the objective
    bias: float | None = number(
        None
    )  # start of the scalar bias; None fits it to the starting scores of training images
    scale_lr: float = number(1e-3, 0.0)  # learning rate of scale and bias; 0 keeps both fixed
    loss: LossConfig = field(default_factory=LossConfig)
    precision: str = choice("auto", "auto", *PRECISIONS)  # the numeric mode of encoders; auto: see models/numeric.py


@dataclass(frozen=True, kw_only=True)
class Stage1Config(TrainingConfig):
    """Dual-view alignment learning: the student ViT is trained; what it starts from is ``hpdval.models.student``'s."""

    student: str = "clip"  # "clip", "scenes", "labelled", a timm ViT by name, or a folder in timm's layout
    student_weights: str | None = None  # a local file for a timm name; None fetches timm's own
    projection: str = choice("clip", "clip", "head")  # CLIP's visual.proj, or the paper's two-layer embedding head
    train_text: bool = False  # the text tower learns along, and T_H with it
    teacher: str = choice("separate", "separate", "same")  # a frozen copy of CLIP, or the student itself: L_kd is 0
    kd_weight: float = number(1.0, 0.0)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int = number(0, 0, 256)  # processes that draw views; 0 on CUDA draws them there
    compile: bool = False  # image towers through torch.compile


@dataclass(frozen=True, kw_only=True)
class Stage2Config(TrainingConfig):
    """Hierarchical prompt tuning: two sets of context vectors are trained, every encoder is fixed."""

    epochs: int = number(10, 1, 100_000)
    lr: float = number(5e-6, above=0.0, high=10.0)
    contexts: int = number(4, 1, 70)  # M; "init" as words has its own length, which must agree
    init: str = "normal"  # "normal": N(0, 0.02); otherwise the words whose token embeddings start the contexts
    features: str = choice("float16", "float16", "bfloat16", "float32")  # how the encoder's features are kept
    prompts: str = choice("both", "both", "global", "local")  # the sets that are learned; the other stays hand-crafted
    sc_weight: float = number(1.0, 0.0)
    sc_anchor: str = choice("global", "global", "local", "both")
    # m: class i adds n_i / (n_i + m) of a residual of its own to the contexts; none: one context for all classes
    shrinkage: float | None = number(None, 0.0)


@dataclass(frozen=True, kw_only=True)
class Rival(Checked):
    """Another method in the place of both stages; the configs are in ``hpdval.rival_configs``."""

    kind: ClassVar[str]  # of its runs
    precision: str = choice("auto", "auto", *PRECISIONS)

    @property
    def label(self) -> str:
        """How tables call it."""
        raise NotImplementedError


# stage 1, then stage 2 on its encoder; both, each from CLIP; one of them; or everything at once (the paper's ablation)
METHODS = {
    "sequence": ("stage 1", "stage 2"),
    "separate": ("stage 1", "stage 2"),
    "stage1": ("stage 1",),
    "stage2": ("stage 2",),
    "joint": ("joint",),
    "rival": (),  # what the experiment's rival is called
}
STAGES = tuple(METHODS)


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
    """Everything a result depends on besides the data: models, scores, both stages, evaluation and the seed."""

    name: str
    stages: str = choice("sequence", *STAGES)
    dataset: str = "scenes-lt"
    clip: str = "scenes"
    pretrained: str | None = None
    template: str = "a photo of a {}."
    resize: str = choice("squash", "squash", "crop")
    normalise: bool = True  # False: encoders get pixels / 255, not normalised by mean and standard deviation
    seed: int = number(0, 0, 2**31 - 1)
    val: float = number(0.0, 0.0, 0.5)
    # "test" is what some published numbers did; it needs the released reading, and no override can ask for it
    selection: str = choice("last", "last", "validation", "test", fixed=("test",))
    readout: str = choice("raw", "raw", "softmax", "l2")
    score: ScoreConfig = field(default_factory=ScoreConfig)
    eval_alpha: float | None = number(None, 0.0, 1.0)  # None: evaluated with the alpha and k of training
    eval_k: int | float | None = number(None, above=0)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    rival: Rival | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.stages == "rival") != (self.rival is not None):
            has = f"the rival {self.rival.label!r}" if self.rival else "no rival"
            raise ConfigError(
                f"stages={self.stages!r} in an experiment with {has}; choose the recipe of a rival instead"
            )
        if self.rival is not None and not self.normalise:
            raise ConfigError("normalise=false belongs to HP-DVAL's stages; a rival's images are always normalised")
        if self.selection == "validation" and self.val == 0:
            raise ConfigError("selection='validation' needs a validation part; set val, for example val=0.2")
        if self.selection == "test" and self.score.reading != "released":
            raise ConfigError("selection='test' belongs to the released reading alone; choose 'last' or 'validation'")
        if self.stages == "joint" and self.stage1.train_text:
            raise ConfigError("joint training keeps the text tower fixed; set stage1.train_text=false")
        _ = self.evaluation_score  # its ranges
        if self.template.count("{}") != 1:
            raise ConfigError(f"template is {self.template!r}; it must hold {{}} once, where the class name goes")

    @property
    def methods(self) -> tuple[str, ...]:
        """What is trained, in order, as tables call it."""
        return METHODS[self.stages] if self.rival is None else (self.rival.label,)

    def settings(self, kind: str) -> TrainingConfig | Rival:
        """Return the settings of a run of ``kind``."""
        if self.rival is not None and kind == self.rival.kind:
            return self.rival
        return self.stage2 if kind == "stage2" else self.stage1

    @property
    def evaluation_score(self) -> ScoreConfig:
        """The score under which results are reported: that of training, unless ``eval_alpha`` or ``eval_k`` differ."""
        alpha = self.score.alpha if self.eval_alpha is None else self.eval_alpha
        return replace(self.score, alpha=alpha, k=self.score.k if self.eval_k is None else self.eval_k)

    def relevant_to(self, kind: str) -> Experiment:
        """Return the experiment as far as a run of ``kind`` reads it: the rest is set to its defaults.

        Two experiments that differ in stage 2 alone have the same stage 1, and share its run.

        >>> one, other = (Experiment(name="x", stage2=Stage2Config(lr=lr)) for lr in (1e-3, 1e-2))
        >>> one.relevant_to("stage1") == other.relevant_to("stage1")
        True
        """
        untrained: dict[str, Any] = {"score": ScoreConfig(), "eval_alpha": None, "eval_k": None, "normalise": True}
        if self.rival is not None and kind == self.rival.kind:
            return replace(self, stage1=Stage1Config(), stage2=Stage2Config(), **untrained)
        if kind not in ("zero-shot", "stage1"):
            return self
        own = replace(self, stages="sequence", stage2=Stage2Config(), rival=None)
        if kind == "stage1":
            return own
        seed = self.seed if self.val else 0  # which decides what is left for training, and nothing else here
        return replace(own, stage1=Stage1Config(), seed=seed, selection="last", **untrained)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain nested dictionaries."""
        return asdict(self)
