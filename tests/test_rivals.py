"""Rivals on a tiny CLIP: each trained to the end, resumed exactly, and its first loss recomputed by hand."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize
from toys import coloured, coloured_set, tiny

import hpdval
from hpdval.config import ScoreConfig, Stage1Config, Stage2Config
from hpdval.data.dataset import Dataset
from hpdval.errors import ConfigError, DataError, RunError
from hpdval.models import Clip
from hpdval.models.conditional_prompts import ConditionalPrompts
from hpdval.models.cprfl import Cprfl
from hpdval.models.prompts import class_prompts, context_init, hand_crafted
from hpdval.overrides import override
from hpdval.recipes import get_recipe
from hpdval.rival_recipes import RIVAL_RECIPES
from hpdval.run import read_manifest, read_metrics, read_predictions
from hpdval.scoring import DualViewScorer, HeadScorer, Scorer, load_run, localise, zero_shot_scorer
from hpdval.scoring.runs import describe_run
from hpdval.training import rivals
from hpdval.training import session as sessions
from hpdval.training.loop import Interrupted, Task, Trainer
from hpdval.training.rivals import train_rival
from hpdval.training.rivals.lmpt import caption_embeddings, fitting
from hpdval.training.stages import run_folders, train
from hpdval.training.trainer import drawing

Array = NDArray[np.float64]
CLASSES = ("red", "green", "blue")
CNN = {"rival.backbone": "test_resnet", "rival.image_size": 32}  # random weights; a ResNet of timm's own tests


def said(targets: np.ndarray) -> list[str]:
    """One line of words about each image."""
    named = (" and ".join(name for name, has in zip(CLASSES, row, strict=True) if has) for row in targets)
    return [f"image {i} of {words or 'nothing'}" for i, words in enumerate(named)]


@pytest.fixture(scope="module")
def colours() -> Dataset:
    """24 and 12 images, those for training with captions."""
    data = coloured_set(24, 12)
    lines = said(data.train.targets)
    return replace(data, train=replace(data.train, captions=lambda i: lines[i]))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return tiny(tmp_path_factory.mktemp("tiny"))


# all settings that a test depends on, stated here: whatever a recipe chooses, a formula is tested at these
TRAINED: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 8,
    "accumulate": 1,
    "sampling": "uniform",
    "optimizer": "adamw",
    "weight_decay": 1e-4,
    "schedule": "constant",
    "ema_decay": 0.0,
    "clip_norm": 0.0,
    "loss.name": "asl",
}
LOGITS: dict[str, Any] = {"scale": 1.0, "bias": 0.0, "scale_lr": 0.0, "loss.name": "bce"}
COSINES: dict[str, Any] = {"scale": 5.0, "bias": None, "scale_lr": 1e-3}
DRAWN: dict[str, Any] = {"contexts": 2, "init": "normal"}
WORDS: dict[str, Any] = {"contexts": 4, "init": "a photo of a"}
VIEWS = {"augment.flip": True, "augment.randaugment_ops": 1, "augment.randaugment_magnitude": 5, "augment.cutout": 0.25}
TUNED: dict[str, Any] = {**TRAINED, **VIEWS, "backbone": None, "weights": None}
LMPT: dict[str, Any] = {"mix": 0.5, "margin": 0.2, "gamma": 2.0, "form": "corrected", "loss.name": "db_focal"}
PARTS: dict[str, Any] = {"initialise": True, "interact": True, "residual": False, "semantic": "clip", "tau": 0.5}
SIZES: dict[str, Any] = {"width": 16, "heads": 2, "head_width": 8, "dropout": 0.1, "tune_encoder": True}
STATED: dict[str, dict[str, Any]] = {
    "prompt-ensemble": {"templates": "imagenet"},
    "knn": {"k": 5, "temperature": 0.07},
    "linear-probe": {**TRAINED, **LOGITS, "hidden": 0, "lr": 1e-2},
    "mlp-probe": {**TRAINED, **LOGITS, "hidden": 8, "lr": 1e-2},
    "coop": {**TRAINED, **COSINES, **DRAWN, "per_class": False, "lr": 5e-3},
    "coop-classes": {**TRAINED, **COSINES, **DRAWN, "per_class": True, "lr": 5e-3},
    "cocoop": {**TRAINED, **COSINES, **WORDS, "reduction": 4, "lr": 5e-3},
    "lmpt": {**TRAINED, **COSINES, **WORDS, **LMPT, "per_class": True, "lr": 5e-3},
    "dualcoop": {
        **TRAINED,
        **LOGITS,
        **DRAWN,
        "loss.name": "asl",
        "per_class": True,
        "temperature": 0.05,
        "logit_scale": 20.0,
        "lr": 2e-2,
    },
    "fine-tuning": {**TUNED, **COSINES, "loss.name": "bce", "head": "linear", "rank": 0, "lr": 2e-3},
    "lora": {**TUNED, **COSINES, "loss.name": "bce", "head": "text", "rank": 2, "lora_scale": 1.0, "lr": 2e-2},
    "cprfl": {**TUNED, **LOGITS, **PARTS, **SIZES, "loss.name": "asl", "lr": 2e-3},
}


def recipe(name: str, **overrides: Any) -> Any:
    """The small recipe with the settings above in the place of its own: few epochs of three updates each."""
    small = get_recipe(f"{name}-small", dataset="colours")
    stated = {f"rival.{field}": value for field, value in STATED[name].items()}
    return override(replace(small, rival=type(small.rival)()), {**stated, **overrides})


# -- each from its recipe to the end -----------------------------------------------------------------------------------

# of TINY: D = W = 16 of the texts, 32 of the images, two layers, 16 patches of 8 x 8
LAYER = 2 * 2 * 32 + (96 * 32 + 96) + (32 * 32 + 32) + (128 * 32 + 128) + (32 * 128 + 32)
TOWER = 32 * 3 * 64 + 32 + 17 * 32 + 2 * LAYER + 2 * 2 * 32 + 32 * 16
HEAD, OBJECTIVE = 3 * 16 + 3, 2  # a linear classifier; scale and bias
CPRFL = (16 * 16 + 16) + (16 * 8 + 8) + (8 * 16 + 16) + 2 * 32 + 16 * 16 + 16 * 32 + 3 * (16 * 16 + 16)

# recipe: the rival's label, and how many numbers learn, counted by hand; 0 is nothing
RIVALS: dict[str, tuple[str, int]] = {
    "prompt-ensemble": ("prompt ensemble", 0),
    "knn": ("kNN", 0),
    "linear-probe": ("linear probe", HEAD),
    "mlp-probe": ("MLP probe", 16 * 8 + 8 + 3 * 8 + 3),
    "coop": ("CoOp", 2 * 16 + OBJECTIVE),
    "coop-classes": ("CoOp, class-specific", 3 * 2 * 16 + OBJECTIVE),
    "cocoop": ("CoCoOp", 4 * 16 + (4 * 16 + 4) + (16 * 4 + 16) + OBJECTIVE),
    "lmpt": ("LMPT", 3 * 4 * 16 + OBJECTIVE),
    "dualcoop": ("DualCoOp", 2 * 3 * 2 * 16),
    "fine-tuning": ("fine-tuning", TOWER + HEAD + OBJECTIVE),
    "lora": ("LoRA", 2 * 3 * (2 * 32 + 32 * 2) + OBJECTIVE),
    "cprfl": ("CPRFL", TOWER + CPRFL),
}


def test_every_recipe_is_trained_below() -> None:
    assert set(RIVALS) == set(STATED) == set(RIVAL_RECIPES)


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def check_run(folder: Path, scorer: Scorer, experiment: Any, colours: Dataset, parameters: int) -> Scorer:
    """What is true of every rival's finished run; returns what was loaded from it."""
    manifest, result = read_manifest(folder), json.loads((folder / "result.json").read_text())
    assert (manifest["status"], manifest["kind"]) == ("done", experiment.rival.kind)
    assert result["method"] == scorer.method == experiment.rival.label
    assert result["recipe"] == experiment.name
    predictions = read_predictions(folder)
    assert predictions["scores"].shape == (12, 3)
    assert np.isfinite(predictions["scores"]).all()
    assert predictions["ids"].tolist() == list(colours.test.ids)
    assert np.array_equal(predictions["targets"], colours.test.targets)
    assert np.array_equal(scorer.score(colours.test, show=False), predictions["scores"])
    loaded = load_run(folder, device="cpu")
    assert type(loaded) is type(scorer)
    assert np.array_equal(loaded.score(colours.test, show=False), predictions["scores"])
    assert loaded.trained == result["trained"]
    backwards = scorer.score(colours.test.subset(range(11, -1, -1)), show=False)
    np.testing.assert_allclose(backwards[::-1], predictions["scores"], rtol=0, atol=1e-5)
    assert np.abs(predictions["scores"][0] - predictions["scores"][1:]).max(axis=1).min() > 2e-5, "images differ"
    if not parameters:
        assert result["trained"] == {}
        assert result["selection"] == "none (nothing is trained)"
        return loaded
    assert list(result["trained"]) == [experiment.rival.label]
    cost = result["trained"][experiment.rival.label]
    assert cost["parameters"] == parameters
    assert cost["seconds"] > 0
    assert result["selection"] == "none (last epoch)"
    losses = losses_of(folder)
    assert len(losses) == 18
    assert sum(losses[-3:]) < sum(losses[:3]), "of the last epoch and the first"
    return loaded


@pytest.mark.parametrize("name", list(RIVALS))
def test_a_rival_from_its_recipe_to_the_end(
    tmp_path: Path, colours: Dataset, clip: Clip, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, parameters = RIVALS[name]
    experiment = recipe(name)
    assert experiment.methods == get_recipe(f"{name}-small").methods == (label,)
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    scorer = train_rival(colours, experiment, run=tmp_path, clip=clip, device="cpu", show=False)
    loaded = check_run(tmp_path, scorer, experiment, colours, parameters)
    assert all(torch.equal(value, before[key]) for key, value in clip.state_dict().items()), "the start is left alone"
    tuned = name in ("fine-tuning", "lora", "cprfl")
    assert (loaded.encoder.weights_sha256 == clip.weights_sha256) is not tuned
    texts_learn = isinstance(loaded, DualViewScorer) and name not in ("prompt-ensemble", "lora")
    assert texts_learn is (name in ("coop", "coop-classes", "lmpt"))
    if isinstance(loaded, DualViewScorer):
        assert torch.equal(loaded.text_global, hand_crafted(clip, CLASSES)) is (name == "lora")
        assert loaded.score_config.alpha == 1.0

    def again(*given: Any) -> Scorer:
        raise AssertionError("a finished run is trained again")

    monkeypatch.setitem(rivals.TRAIN, type(experiment.rival), again)
    once_more = train_rival(colours, experiment, run=tmp_path, clip=clip, device="cpu", show=False)
    assert np.array_equal(once_more.score(colours.test, show=False), read_predictions(tmp_path)["scores"])


@pytest.mark.parametrize("name", ["fine-tuning", "cprfl"])
def test_a_rival_on_a_cnn(tmp_path: Path, colours: Dataset, clip: Clip, name: str) -> None:
    experiment = recipe(name, **CNN, **{"rival.lr": 3e-3})
    scorer = train_rival(colours, experiment, run=tmp_path / "run", clip=clip, device="cpu", show=False)
    backbone = sum(p.numel() for p in scorer.encoder.parameters())
    assert backbone == 372_688, "timm's own count of test_resnet without its classifier"
    # F is 96 in the place of D = 16
    parameters = 96 * 3 + 3 + OBJECTIVE if name == "fine-tuning" else CPRFL + (96 - 16) * 16
    loaded = check_run(tmp_path / "run", scorer, experiment, colours, backbone + parameters)
    assert loaded.encoder.stem == "cnn"
    assert {"cnn.json", "cnn.safetensors"} < set(read_manifest(tmp_path / "run")["files"])
    for file in ("cnn.json", "cnn.safetensors", "model.safetensors"):
        folder = shutil.copytree(tmp_path / "run", tmp_path / file)
        with open(folder / file, "r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            last = opened.read(1)
            opened.seek(-1, os.SEEK_END)
            opened.write(bytes([last[0] ^ 1]))
        with pytest.raises(RunError, match=f"{file} differs from its hash in the manifest"):
            load_run(folder)
        (folder / file).unlink()
        with pytest.raises(RunError, match=rf"holds no model \({file} is missing"):
            load_run(folder)
    with pytest.raises(RunError, match="has a Cnn for encoder; start from a run with a CLIP"):
        train_rival(colours, recipe("coop"), run=tmp_path / "coop", clip=scorer, device="cpu", show=False)


def test_a_fixed_encoder_stays_under_category_prompts(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    experiment = recipe("cprfl", **{"rival.tune_encoder": False})
    scorer = train_rival(colours, experiment, run=tmp_path, clip=clip, device="cpu", show=False)
    check_run(tmp_path, scorer, experiment, colours, CPRFL)
    assert scorer.encoder.weights_sha256 == clip.weights_sha256


def test_another_experiment_or_other_captions_in_the_same_folder_are_refused(
    tmp_path: Path, colours: Dataset, clip: Clip
) -> None:
    experiment = recipe("lmpt", **{"rival.epochs": 1})
    train_rival(colours, experiment, run=tmp_path, clip=clip, show=False)
    with pytest.raises(RunError, match=r"holds another run \(config\.rival\.lr: 0\.005 there, 0\.1 here\)"):
        train_rival(colours, recipe("lmpt", **{"rival.epochs": 1, "rival.lr": 0.1}), run=tmp_path, clip=clip)
    reworded = replace(colours, train=replace(colours.train, captions=lambda i: "something else"))
    with pytest.raises(RunError, match=r"holds another run \(inputs\.captions"):
        train_rival(reworded, experiment, run=tmp_path, clip=clip, show=False)


def test_a_frozen_rival_after_stage_1_shares_its_encoders_file(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    hpdval_run = get_recipe("scenes", dataset="colours", **{"stage1.epochs": 1})
    from hpdval.training.stage1 import train_stage1

    first = train_stage1(colours, hpdval_run, run=tmp_path / "s1", clip=clip, show=False)
    scorer = train_rival(colours, recipe("coop"), run=tmp_path / "coop", clip=tmp_path / "s1", show=False)
    assert (tmp_path / "s1/clip.safetensors").samefile(tmp_path / "coop/clip.safetensors")
    assert list(scorer.trained) == ["stage 1", "CoOp"]
    assert scorer.encoder.weights_sha256 == first.encoder.weights_sha256 != clip.weights_sha256


# -- resume ------------------------------------------------------------------------------------------------------------

RESUMED = {
    "dropout, AdamW": ("cprfl", {"rival.dropout": 0.3}),
    "Adam": ("linear-probe", {"rival.optimizer": "adam"}),
    "SGD, moving average": ("coop", {"rival.optimizer": "sgd", "rival.ema_decay": 0.9}),
    "class-aware sampling": ("fine-tuning", {"rival.sampling": "class-aware"}),
    "two losses": ("lmpt", {}),
}


def files_of(folder: Path) -> dict[str, Any]:
    files = read_manifest(folder)["files"]
    return {name: files[name] for name in ("clip.safetensors", "model.safetensors", "metrics.jsonl", "predictions.npz")}


@pytest.mark.parametrize("case", list(RESUMED))
def test_interrupted_in_mid_epoch_the_resumed_run_is_bit_identical(
    tmp_path: Path, colours: Dataset, clip: Clip, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, overrides = RESUMED[case]
    experiment = recipe(name, **{"rival.epochs": 2, "rival.schedule": "one-cycle", **overrides})
    train_rival(colours, experiment, run=tmp_path / "whole", clip=clip, device="cpu", show=False)
    torch.manual_seed(123)  # what the generator of another process may be at
    step = Trainer.step

    def stopped(self: Trainer, batches: Sequence[Any]) -> None:
        if self.update == 3:  # the first of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted, match="after update 4 of 6"):
            train_rival(colours, experiment, run=tmp_path / "cut", clip=clip, device="cpu", show=False)
    made: list[int] = []

    def noted(self: Trainer, batches: Sequence[Any]) -> None:
        made.append(self.update)
        step(self, batches)

    monkeypatch.setattr(Trainer, "step", noted)
    train_rival(colours, experiment, run=tmp_path / "cut", clip=clip, device="cpu", show=False)
    assert made == [4, 5], "what was done is not done again"
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


# -- the best epoch, and averaged weights ------------------------------------------------------------------------------


def loaded_as_trained(folder: Path, scorer: Scorer, colours: Dataset) -> Scorer:
    """What the finished run gives back: an ordinary encoder with the scores that were written."""
    assert not any(parametrize.is_parametrized(module) for module in scorer.encoder.modules()), "merged"
    loaded, stored = load_run(folder, device="cpu"), read_predictions(folder)["scores"]
    assert np.array_equal(scorer.score(colours.test, show=False), stored)
    assert np.array_equal(loaded.score(colours.test, show=False), stored)
    return loaded


BEST = [("lora", {}), ("lora", {"rival.ema_decay": 0.8}), ("coop", {"rival.features": "float32"}), ("cprfl", {})]


@pytest.mark.parametrize(("name", "settings"), BEST)
def test_the_best_epoch_on_validation_images_is_the_result(
    tmp_path: Path, colours: Dataset, clip: Clip, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(colours, val=coloured(9, 3))
    same: dict[str, Any] = {**settings, "val": 0.2}
    seen: list[NDArray[Any]] = []
    values = iter([10.0, 30.0, 20.0])

    def watched(dataset: Dataset, experiment: Any, score: Any) -> Any:
        def value() -> float:
            seen.append(score(dataset.val))
            return next(values)

        return "val_map", value

    with monkeypatch.context() as patched:
        patched.setattr(sessions, "watched_map", watched)
        experiment = recipe(name, **same, **{"rival.epochs": 3, "selection": "validation"})
        scorer = train_rival(known, experiment, run=tmp_path / "best", clip=clip, device="cpu", show=False)
    logged = [record["val_map"] for record in read_metrics(tmp_path / "best") if "val_map" in record]
    assert logged == [10.0, 30.0, 20.0]
    loaded = loaded_as_trained(tmp_path / "best", scorer, known)
    assert scorer.selection == loaded.selection == "best epoch on validation"
    np.testing.assert_allclose(loaded.score(known.val, show=False), seen[1], rtol=0, atol=1e-6)
    assert min(np.abs(seen[1] - other).max() for other in (seen[0], seen[2])) > 1e-5, "epochs differ"
    two = recipe(name, **same, **{"rival.epochs": 2})  # the best one was the second: all that is as if it were the last
    train_rival(known, two, run=tmp_path / "two", clip=clip, device="cpu", show=False)
    scores = [read_predictions(tmp_path / folder)["scores"] for folder in ("best", "two")]
    assert np.array_equal(*scores)


def test_the_average_of_low_rank_updates_is_what_is_merged(
    tmp_path: Path, colours: Dataset, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay, step = 0.8, Trainer.step
    averages: dict[str, Array] = {}

    def followed(self: Trainer, batches: Sequence[Any]) -> None:
        values = [{n: p.detach().double().numpy().copy() for n, p in self.named.items()}]
        step(self, batches)
        values.append({n: p.detach().double().numpy().copy() for n, p in self.named.items()})
        for n in self.named:
            averages[n] = decay * averages.get(n, values[0][n]) + (1 - decay) * values[1][n]

    monkeypatch.setattr(Trainer, "step", followed)
    experiment = recipe("lora", **{"rival.ema_decay": decay, "rival.epochs": 2, "rival.lora_scale": 1.5})
    scorer = train_rival(colours, experiment, run=tmp_path, clip=clip, device="cpu", show=False)
    loaded = loaded_as_trained(tmp_path, scorer, colours)
    start, end = (dict(encoder.visual.named_parameters()) for encoder in (clip, loaded.encoder))
    assert start.keys() == end.keys()
    merged = [n for n in start if n.endswith("attn.in_proj_weight")]
    assert len(merged) == 2
    for n in start:
        if n not in merged:
            assert torch.equal(start[n], end[n])
            continue
        at, _, weight = n.rpartition(".")
        [up], [down] = (
            [a for key, a in averages.items() if f"{at}.parametrizations.{weight}.0.{part}" in key]
            for part in ("up", "down")
        )
        update = 1.5 * np.concatenate([up[i] @ down[i] for i in range(3)])
        assert np.abs(update).max() > 1e-4
        expected = start[n].detach().double().numpy() + update
        np.testing.assert_allclose(end[n].detach().numpy(), expected, rtol=0, atol=1e-6)


# -- word vectors ------------------------------------------------------------------------------------------------------


def test_word_vectors_decide_a_run_by_what_they_say_not_by_where_they_lie(
    tmp_path: Path, colours: Dataset, clip: Clip
) -> None:
    vectors = np.random.default_rng(4).normal(size=(4, 5)).round(3)
    lines = [" ".join([word, *map(str, v)]) for word, v in zip(("the", *CLASSES), vectors.tolist(), strict=True)]
    files = [tmp_path / name for name in ("glove.txt", "elsewhere.txt", "other.txt")]
    for file in files[:2]:
        file.write_text("\n".join(lines) + "\n")
    files[2].write_text("\n".join([*lines[:-1], lines[-1].replace(str(vectors[3, 0]), "9.5")]) + "\n")
    one, elsewhere, other = (recipe("cprfl", **{"rival.semantic": str(file)}) for file in files)
    scorer = train_rival(colours, one, run=tmp_path / "run", clip=clip, device="cpu", show=False)
    # T is 5 in the place of D = 16
    loaded = check_run(tmp_path / "run", scorer, one, colours, TOWER + CPRFL - (16 - 5) * 8)
    assert isinstance(loaded, HeadScorer)
    np.testing.assert_array_equal(loaded.head.model.embeddings.numpy(), vectors[1:].astype(np.float32))
    start = zero_shot_scorer(clip, CLASSES)
    assert describe_run("cprfl", colours, elsewhere, start) == describe_run("cprfl", colours, one, start)
    again = train_rival(colours, elsewhere, run=tmp_path / "run", clip=clip, device="cpu", show=False)
    assert np.array_equal(again.score(colours.test, show=False), read_predictions(tmp_path / "run")["scores"])
    shutil.copy(files[2], files[0])
    for changed in (one, other):
        with pytest.raises(RunError, match=r"holds another run \([^)]*semantic") as caught:
            train_rival(colours, changed, run=tmp_path / "run", clip=clip, device="cpu", show=False)
        assert "\n" not in str(caught.value)
    clips = recipe("cprfl")
    assert describe_run("cprfl", colours, clips, start) != describe_run("cprfl", colours, elsewhere, start)


class Noise(Task):
    """Draws three numbers as its loss."""

    def __init__(self, stochastic: bool) -> None:
        super().__init__()
        self.stochastic = stochastic
        self.weight = torch.nn.Parameter(torch.zeros(1))


def test_what_a_task_draws_follows_seed_update_and_batch_and_leaves_the_generator_alone() -> None:
    def drawn(seed: int, update: int, number: int) -> torch.Tensor:
        with drawing(Noise(True), seed, update, number):
            return torch.rand(3)

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = drawn(0, 3, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(10)
    assert torch.equal(drawn(0, 3, 1), first)
    for other in ((1, 3, 1), (0, 4, 1), (0, 3, 2)):
        assert not torch.equal(drawn(*other), first)
    with drawing(Noise(False), 0, 3, 1):  # a task that draws nothing costs nothing
        plain = torch.rand(3)
    assert not torch.equal(plain, first)


def test_only_a_rival_with_dropout_draws() -> None:
    assert recipe("cprfl").rival.stochastic
    assert not recipe("cprfl", **{"rival.dropout": 0.0}).rival.stochastic


# -- formulas of tasks, recomputed in float64 --------------------------------------------------------------------------

SCALE, BIAS = 15.0, -2.5
WHOLE: dict[str, Any] = {  # one update on all training images, its loss the ASL at a scale and bias that are known
    "rival.epochs": 1,
    "rival.batch_size": 24,
    "rival.features": "float32",
    "rival.loss.name": "asl",
    "rival.scale": SCALE,
    "rival.bias": BIAS,
    "rival.scale_lr": 1e-3,
}


def first_record(folder: Path, colours: Dataset, clip: Clip, name: str, **overrides: Any) -> dict[str, float]:
    experiment = recipe(name, **{**WHOLE, **overrides})
    train_rival(colours, experiment, run=folder, clip=clip, device="cpu", show=False)
    [record] = [record for record in read_metrics(folder) if "loss" in record]
    return record


@pytest.fixture(scope="module")
def exact(clip: Clip) -> Clip:
    return copy.deepcopy(clip).double()


@pytest.fixture(scope="module")
def encoded(exact: Clip, colours: Dataset) -> tuple[Array, Array]:
    """cls (N, D) and patches (N, P, D) of the training images, L2-normalised."""
    images = torch.from_numpy(np.stack([colours.train.image(i) for i in range(24)]))
    with torch.no_grad():
        features = exact.encode_image(images)
    return unit(features.cls.numpy()), unit(features.patches.numpy())


def unit(x: Any) -> Array:
    return np.asarray(x / np.sqrt((x**2).sum(axis=-1, keepdims=True)))


def texts(exact: Clip, contexts: Sequence[torch.Tensor]) -> Array:
    """T (C, D), each class through the tower by itself, L2-normalised."""
    pairs = zip(contexts, CLASSES, strict=True)
    return unit(np.stack([exact.encode_prompts(context.double(), [name])[0].numpy() for context, name in pairs]))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def asl_written_out(logits: Array, labels: NDArray[Any]) -> float:
    """Ridnik et al., eq. 4-7, with gamma 0 and 4 and a shift of 0.05."""
    p, targets = sigmoid(logits), labels.astype(np.float64)
    shifted = np.maximum(p - 0.05, 0)
    return float(np.mean(-targets * np.log(p) - (1 - targets) * shifted**4 * np.log(1 - shifted)))


@pytest.mark.parametrize("name", ["coop", "coop-classes"])
def test_the_loss_of_coop(
    tmp_path: Path, colours: Dataset, clip: Clip, exact: Clip, encoded: tuple[Array, Array], name: str
) -> None:
    record = first_record(tmp_path, colours, clip, name)
    per_class = name == "coop-classes"
    start = context_init(exact, 2, "normal", 0, classes=3 if per_class else None)
    start32 = context_init(clip, 2, "normal", 0, classes=3 if per_class else None)
    torch.testing.assert_close(start.float(), start32)
    text = texts(exact, list(start) if per_class else [start] * 3)
    logits = SCALE * encoded[0] @ text.T + BIAS
    assert record["cls"] == pytest.approx(asl_written_out(logits, colours.train.targets), rel=1e-5)
    assert record["cls"] == record["loss"]


@pytest.mark.parametrize("form", ["corrected", "released"])
def test_the_loss_of_lmpt(
    tmp_path: Path, colours: Dataset, clip: Clip, exact: Clip, encoded: tuple[Array, Array], form: str
) -> None:
    mix, margin, gamma = 0.3, 1.5, 1.0
    values = {"rival.mix": mix, "rival.margin": margin, "rival.gamma": gamma, "rival.form": form}
    record = first_record(tmp_path, colours, clip, "lmpt", **values)
    text = texts(exact, [context_init(exact, 4, "a photo of a")] * 3)
    targets, counts = colours.train.targets, colours.train.targets.sum(0).astype(float)
    captions = unit(np.stack([exact.encode_text([line])[0].numpy() for line in said(targets)]))
    weights = counts**-gamma / (counts**-gamma).sum()
    total = 0.0
    for b in range(24):
        for i in range(3):
            d = 1 - float(captions[b] @ text[i])
            m = margin / counts[i] ** 0.25
            if form == "corrected":
                total += weights[i] * (d if targets[b, i] else max(m - d, 0.0))
            else:
                total += weights[i] * max(m - (d if targets[b, i] else -d), 0.0)
    cls = asl_written_out(SCALE * encoded[0] @ text.T + BIAS, targets)
    cse = total / (24 * 3)
    assert cse > 1e-2
    assert record["cls"] == pytest.approx(mix * cls, rel=1e-5)
    assert record["cse"] == pytest.approx((1 - mix) * cse, rel=1e-4)
    assert record["loss"] == pytest.approx(mix * cls + (1 - mix) * cse, rel=1e-4)


def test_lmpt_without_its_own_loss_is_class_specific_coop(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    same = {"rival.init": "a photo of a", "rival.contexts": 4, "rival.lr": 5e-3, "rival.epochs": 2}
    lmpt = first_two(tmp_path / "lmpt", colours, clip, "lmpt", **same, **{"rival.mix": 1.0})
    coop = first_two(tmp_path / "coop", colours, clip, "coop-classes", **same)
    assert lmpt == coop
    mixed = first_two(tmp_path / "mixed", colours, clip, "lmpt", **same, **{"rival.mix": 0.9})
    assert mixed[1][0] == pytest.approx(0.9 * coop[1][0])
    assert mixed[0] != coop[0]


def first_two(folder: Path, colours: Dataset, clip: Clip, name: str, **overrides: Any) -> tuple[bytes, list[float]]:
    """Scores after two updates, and the classification losses on the way."""
    experiment = recipe(name, **{**WHOLE, **overrides})
    train_rival(colours, experiment, run=folder, clip=clip, device="cpu", show=False)
    losses = [record["cls"] for record in read_metrics(folder) if "cls" in record]
    return read_predictions(folder)["scores"].tobytes(), losses


def test_the_loss_of_dualcoop(
    tmp_path: Path, colours: Dataset, clip: Clip, exact: Clip, encoded: tuple[Array, Array]
) -> None:
    values = {"rival.temperature": 0.1, "rival.logit_scale": 30.0}
    plain = {"rival.scale": 1.0, "rival.bias": 0.0, "rival.scale_lr": 0.0}
    record = first_record(tmp_path, colours, clip, "dualcoop", **values, **plain)
    positive, negative = (texts(exact, list(context_init(exact, 2, "normal", i, classes=3))) for i in range(2))
    logits = np.zeros((24, 3))
    for b, patches in enumerate(encoded[1]):
        for i in range(3):
            near, far = patches @ positive[i], patches @ negative[i]
            weights = np.exp(near / 0.1) / np.exp(near / 0.1).sum()
            logits[b, i] = 30.0 * float(weights @ near - weights @ far)
    assert np.abs(logits).max() > 0.1
    assert record["loss"] == pytest.approx(asl_written_out(logits, colours.train.targets), rel=1e-4)


def test_the_loss_of_cocoop_has_texts_of_each_image(
    tmp_path: Path, colours: Dataset, clip: Clip, exact: Clip, encoded: tuple[Array, Array]
) -> None:
    record = first_record(tmp_path, colours, clip, "cocoop")
    prompts = ConditionalPrompts(clip, CLASSES, reduction=4, seed=0)
    net = {name: value.double().numpy() for name, value in prompts.meta_net.state_dict().items()}
    context = context_init(exact, 4, "a photo of a").numpy()
    cosines = np.zeros((24, 3))
    for b, f in enumerate(encoded[0]):
        shift = net["2.weight"] @ np.maximum(net["0.weight"] @ f + net["0.bias"], 0) + net["2.bias"]
        cosines[b] = texts(exact, [torch.from_numpy(context + shift)] * 3) @ f
    logits = SCALE * cosines + BIAS
    assert record["loss"] == pytest.approx(asl_written_out(logits, colours.train.targets), rel=1e-5)
    fixed = SCALE * encoded[0] @ texts(exact, [torch.from_numpy(context)] * 3).T + BIAS
    assert record["loss"] != pytest.approx(asl_written_out(fixed, colours.train.targets), rel=1e-3)


def test_the_loss_of_fine_tuning_starts_as_that_of_zero_shot(
    tmp_path: Path, colours: Dataset, clip: Clip, exact: Clip
) -> None:
    still = {"rival.augment.randaugment_ops": 0, "rival.augment.cutout": 0.0, "rival.augment.flip": False}
    values = {name: value for name, value in WHOLE.items() if name != "rival.features"}
    images = torch.from_numpy(np.stack([colours.train.image(i) for i in range(24)]))
    cls = unit(exact.encode_image(images).cls.numpy())
    text = unit(np.stack([exact.encode_text([prompt])[0].numpy() for prompt in class_prompts(CLASSES)]))
    expected = asl_written_out(SCALE * cls @ text.T + BIAS, colours.train.targets)
    for name in ("fine-tuning", "lora"):
        train_rival(colours, recipe(name, **values, **still), run=tmp_path / name, clip=clip, device="cpu", show=False)
        assert losses_of(tmp_path / name) == [pytest.approx(expected, rel=1e-4)]


def test_the_logits_of_cprfl_are_those_of_its_model_on_patches(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    experiment = recipe("cprfl", **{"rival.epochs": 1})
    train_rival(colours, experiment, run=tmp_path, clip=clip, device="cpu", show=False)
    scorer = load_run(tmp_path, device="cpu")
    assert isinstance(scorer, HeadScorer)
    model = Cprfl(hand_crafted(clip, CLASSES), 16, width=16, heads=2, head_width=8, dropout=0.1).eval()
    model.load_state_dict({name.removeprefix("model."): value for name, value in scorer.head.state_dict().items()})
    assert torch.equal(model.embeddings, hand_crafted(clip, CLASSES)), "class embeddings are CLIP's, and stay"
    images = torch.from_numpy(np.stack([colours.test.image(i) for i in range(12)]))
    with torch.no_grad():
        expected = model(scorer.encoder.encode_image(images).patches)
    np.testing.assert_allclose(read_predictions(tmp_path)["scores"], expected.numpy(), rtol=0, atol=1e-5)


def test_class_aware_sampling_decides_which_images_an_update_takes(
    tmp_path: Path, colours: Dataset, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpdval.training.sampling import class_aware

    step, taken = Trainer.step, []

    def noted(self: Trainer, batches: Sequence[Any]) -> None:
        taken.extend(image for batch in batches for image in batch["ids"])
        step(self, batches)

    monkeypatch.setattr(Trainer, "step", noted)
    experiment = recipe("linear-probe", seed=3, **{"rival.sampling": "class-aware", "rival.epochs": 1})
    train_rival(colours, experiment, run=tmp_path, clip=clip, device="cpu", show=False)
    assert taken == [colours.train.ids[i] for i in class_aware(colours.train.targets)(3, 0)]


# -- captions ----------------------------------------------------------------------------------------------------------


def test_of_a_long_caption_the_end_is_cut_off(clip: Clip, colours: Dataset) -> None:
    long = "red " * 13 + "green blue"  # the tower has 16 places, two of them for start and end
    assert fitting(clip, long) == ("red " * 13 + "green").strip()
    assert fitting(clip, "red  and green") == "red and green"
    split = replace(colours.train.subset(range(2)), captions=lambda i: (long, "a red thing")[i])
    expected = clip.encode_text([("red " * 13 + "green").strip(), "a red thing"])
    assert torch.equal(caption_embeddings(clip, split), expected)


def test_without_captions_lmpt_is_refused_before_anything_is_done(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    mute = replace(colours, train=replace(colours.train, captions=None))
    with pytest.raises(
        DataError, match=r"^these images have no captions, which LMPT learns from; docs/data\.md"
    ) as caught:
        train(mute, recipe("lmpt"), run=tmp_path / "run", clip=clip, device="cpu", show=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="have no captions"):
        train_rival(mute, recipe("lmpt"), run=tmp_path / "alone", clip=clip, device="cpu", show=False)


def test_contexts_that_cannot_be_made_are_refused_before_anything_is_done(
    tmp_path: Path, colours: Dataset, clip: Clip
) -> None:
    for name in ("cocoop", "lmpt"):
        with pytest.raises(ConfigError, match="a photo of a"):
            train(colours, recipe(name, **{"rival.contexts": 3}), run=tmp_path / "run", clip=clip, show=False)
    assert not (tmp_path / "run").exists()


# -- a rival among stages ----------------------------------------------------------------------------------------------


def test_train_puts_a_rival_beside_zero_shot(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    experiment = recipe("coop", **{"rival.epochs": 1})
    expected = {"zero-shot": tmp_path / "run/zero-shot", "CoOp": tmp_path / "run/coop"}
    assert run_folders(tmp_path / "run", experiment) == expected
    assert hpdval.train(colours, experiment, run=tmp_path / "run", clip=clip, device="cpu", show=False) == expected
    kinds = [read_manifest(folder)["kind"] for folder in expected.values()]
    assert kinds == ["zero-shot", "coop"]
    zero = read_predictions(expected["zero-shot"])["scores"]
    np.testing.assert_array_equal(zero, hpdval.zero_shot(clip, colours.test, CLASSES, show=False, resize="squash"))
    shared = hpdval.train(
        colours, experiment, run=tmp_path / "b", shared=tmp_path / "s", clip=clip, device="cpu", show=False
    )
    assert shared["zero-shot"].parent == tmp_path / "s"
    assert shared["CoOp"] == tmp_path / "b/coop"


def test_what_a_rivals_run_depends_on(colours: Dataset, clip: Clip) -> None:
    start = zero_shot_scorer(clip, CLASSES)
    one = recipe("coop")
    others = {
        "stage1": replace(one, stage1=Stage1Config(lr=1e-2)),
        "stage2": replace(one, stage2=Stage2Config(lr=1e-2)),
        "score": replace(one, score=ScoreConfig(alpha=0.9), eval_alpha=0.1),
    }
    key = describe_run("coop", colours, one, start)
    for name, other in others.items():
        assert describe_run("coop", colours, other, start) == key, name
    for changed in ({"rival.lr": 0.1}, {"seed": 1}, {"template": "the {}."}, {"rival.loss.name": "bce"}):
        assert describe_run("coop", colours, recipe("coop", **changed), start) != key
    zero, _ = describe_run("zero-shot", colours, one, start)
    assert zero["rival"] is None
    assert describe_run("zero-shot", colours, recipe("knn"), start)[0] | {"name": ""} == zero | {"name": ""}


def test_maps_and_explorer_say_that_a_head_has_no_texts(clip: Clip, colours: Dataset, tmp_path: Path) -> None:
    scorer = train_rival(colours, recipe("linear-probe", **{"rival.epochs": 1}), run=tmp_path, clip=clip, show=False)
    for attempt, words in (
        (lambda: hpdval.heatmaps(scorer, colours.test.image(0), ["red"]), "is no scorer of texts on patches"),
        (lambda: localise(scorer, colours, show=False), "is no scorer of texts on patches"),
        (lambda: hpdval.explore(scorer, colours, show=False), "model is a HeadScorer; the explorer shows texts"),
        (lambda: hpdval.explore(tmp_path, colours, show=False), "scores by a HeadScorer; the explorer shows texts"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_an_experiment_without_a_rival_is_refused(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    with pytest.raises(
        ConfigError, match="the experiment 'scenes' has no rival; use the recipe of one, such as 'coop'"
    ):
        train_rival(colours, "scenes", run=tmp_path, clip=clip, show=False)
