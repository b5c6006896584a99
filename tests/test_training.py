"""The loop on a task small enough to know the answer; both stages on a tiny CLIP; resume that changes no bit."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import CLASSES, coloured_set, recipe, tiny

import hpdval
from hpdval import tables
from hpdval.config import ScoreConfig, TrainingConfig
from hpdval.data.dataset import Dataset
from hpdval.data.store import ImageStore
from hpdval.errors import ConfigError, NonFiniteLossError, RunError
from hpdval.metrics import Protocol
from hpdval.models import Clip
from hpdval.run import Run, read_metrics, read_predictions
from hpdval.scoring import zero_shot_scorer
from hpdval.training.batches import Batch, Plan
from hpdval.training.joint import train_joint
from hpdval.training.loop import Interrupted, Task, Trainer, fit
from hpdval.training.optim import MovingAverage, lr_factor, parameter_groups
from hpdval.training.stage1 import DualViewAlignment, distillation_loss, train_stage1, view_batches
from hpdval.training.stage2 import train_stage2

# -- schedule, groups, moving average --------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.3), (57, 0.1), (200, 0.25)])
def test_one_cycle_is_pytorchs(total: int, warmup: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=warmup)
    for update in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_factor(update, total, "one-cycle", warmup) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        optimizer.step()
        if update < total - 1:
            oracle.step()


def test_weight_decay_spares_vectors() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    module[0].bias.requires_grad_(False)
    decayed, spared = parameter_groups(module, lr=0.1, weight_decay=0.5)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.5
    assert len(spared["params"]) == 2  # the norm's weight and bias; the frozen bias is in neither
    assert spared["weight_decay"] == 0.0


def test_moving_average_is_its_formula_and_swap_comes_back() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage([parameter], 0.9)
    expected = 1.0
    for value in (2.0, 3.0):
        parameter.data.fill_(value)
        average.update()
        expected = 0.9 * expected + 0.1 * value
    average.swap()
    assert parameter.item() == pytest.approx(expected)
    average.swap()
    assert parameter.item() == 3.0


# -- the loop ----------------------------------------------------------------------------------------------------------


class Line(Task):
    """Least squares on one weight and bias; the optimum is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self, lr=0.05, weight_decay=0.0)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"mse": ((self.layer(batch["x"]) - batch["y"]) ** 2).mean()}


class LineBatches:
    """y = 2 x + 1; remembers what was asked for."""

    def __init__(self, n: int, stop_after: int | None = None, poison: int | None = None) -> None:
        self.x = torch.linspace(-1, 1, n)[:, None]
        self.asked: list[tuple[int, list[int]]] = []
        self.stop_after, self.poison = stop_after, poison

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        for batch in indices:
            if self.stop_after is not None and len(self.asked) == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            self.asked.append((epoch, batch.tolist()))
            x = self.x[batch]
            y = 2 * x + 1
            if self.poison is not None and self.poison in batch:
                y = y * float("nan")
            yield {"x": x, "y": y, "ids": [f"image {i}" for i in batch]}


def run_line(folder: Path, batches: LineBatches, config: TrainingConfig, n: int = 10, **options: Any) -> Line:
    task = Line()
    with Run(folder, kind="line", config={}) as run:
        fit(task, batches, config, run, stage="line", n_images=n, seed=3, show=False, **options)
    return task


def test_the_loop_finds_the_known_optimum(tmp_path: Path) -> None:
    task = run_line(tmp_path, LineBatches(10), TrainingConfig(epochs=100, batch_size=4, lr=0.05))
    assert task.layer.weight.item() == pytest.approx(2, abs=0.02)
    assert task.layer.bias.item() == pytest.approx(1, abs=0.02)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    plan = Plan(n_images=10, batch_size=4, accumulate=2, epochs=3, seed=1)
    epochs = [np.concatenate(plan.micro_batches(epoch)) for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert (plan.updates_per_epoch, plan.updates) == (2, 6)


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    large = run_line(tmp_path / "a", LineBatches(8), TrainingConfig(epochs=3, batch_size=8, lr=0.05), n=8)
    small = run_line(tmp_path / "b", LineBatches(8), TrainingConfig(epochs=3, batch_size=2, accumulate=4, lr=0.05), n=8)
    torch.testing.assert_close(small.layer.weight, large.layer.weight)
    assert len(read_metrics(tmp_path / "b")) == len(read_metrics(tmp_path / "a")) == 3


@pytest.mark.parametrize("stop_after", [1, 4, 6, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_anywhere_the_resumed_run_is_bit_identical(tmp_path: Path, stop_after: int, accumulate: int) -> None:
    config = TrainingConfig(epochs=4, batch_size=4, lr=0.05, accumulate=accumulate, ema_decay=0.9, schedule="one-cycle")
    whole = LineBatches(10)
    expected = run_line(tmp_path / "whole", whole, config)
    with pytest.raises(RunError, match="run the same command again"):
        run_line(tmp_path / "cut", LineBatches(10, stop_after=stop_after), config)
    rest = LineBatches(10)
    resumed = run_line(tmp_path / "cut", rest, config)
    assert torch.equal(resumed.layer.weight, expected.layer.weight)
    assert torch.equal(resumed.layer.bias, expected.layer.bias)
    assert rest.asked == whole.asked[-len(rest.asked) :]
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


def test_a_non_finite_loss_makes_no_update_and_names_the_images(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=1, batch_size=2, lr=0.05)
    poisoned = Plan(10, 2, 1, 1, 3).micro_batches(0)[3][0]
    task = Line()
    with Run(tmp_path, kind="line", config={}) as run, pytest.raises(NonFiniteLossError, match=f"image {poisoned}"):
        fit(
            task,
            LineBatches(10, poison=int(poisoned)),
            config,
            run,
            stage="line",
            n_images=10,
            seed=3,
            show=False,
        )
    assert torch.isfinite(task.layer.weight).all()
    assert len(read_metrics(tmp_path)) == 3  # the three updates before it


class Spiked(Line):
    """A loss that is finite while its gradient is not: the root of zero."""

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        spike = torch.sqrt(0.0 * self.layer.bias.sum()) if "image 5" in batch["ids"] else torch.zeros(())
        return {**super().losses(batch), "spike": spike}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_non_finite_gradient_makes_no_update_either(tmp_path: Path, accumulate: int) -> None:
    task, config = Spiked(), TrainingConfig(epochs=1, batch_size=2, accumulate=accumulate)
    with Run(tmp_path, kind="line", config={}) as run, pytest.raises(NonFiniteLossError, match=r"gradient.*image 5"):
        fit(task, LineBatches(10), config, run, stage="line", n_images=10, seed=3, show=False)
    assert torch.isfinite(task.layer.weight).all()
    assert torch.isfinite(task.layer.bias).all()


def test_moments_return_to_their_own_parameters(tmp_path: Path) -> None:
    """A parameter that never had a gradient has no moments, and must not shift those of the others."""

    def made() -> Line:
        task = Line()
        task.unused = torch.nn.Parameter(torch.zeros(1, 1))
        task.layer.weight, task.unused = task.unused, task.layer.weight  # the unused one is now the layer's
        task.layer.forward = lambda x: x * task.unused + task.layer.bias  # type: ignore[method-assign]
        return task

    config = TrainingConfig(epochs=1, batch_size=4)
    with Run(tmp_path, kind="line", config={}) as run:
        plan = Plan(10, 4, 1, 1, 0)
        first = Trainer(made(), config, plan, run, "line")
        for batch in LineBatches(10)(plan.micro_batches(0), 0):
            first.step([batch])
        first.save()
        second = Trainer(made(), config, plan, run, "line")
        second.resume()
    for name, parameter in second.named.items():
        before, after = first.optimizer.state[first.named[name]], second.optimizer.state[parameter]
        assert before.keys() == after.keys(), name
        assert all(torch.equal(before[key], after[key]) for key in before), name


@pytest.mark.parametrize("keep_best", [True, False])
def test_validation_keeps_the_best_epoch_where_asked(tmp_path: Path, keep_best: bool) -> None:
    values = iter([10.0, 30.0, 20.0])
    seen: list[float] = []
    task = Line()

    def validate() -> float:
        seen.append(task.layer.weight.item())
        return next(values)

    with Run(tmp_path, kind="line", config={}) as run:
        fit(
            task,
            LineBatches(10),
            TrainingConfig(epochs=3, batch_size=4),
            run,
            stage="line",
            n_images=10,
            seed=3,
            watch=("val_map", validate),
            keep_best=keep_best,
            show=False,
        )
    assert task.layer.weight.item() == seen[1 if keep_best else 2]
    assert [r["val_map"] for r in read_metrics(tmp_path) if "val_map" in r] == [10.0, 30.0, 20.0]


# -- both stages on a tiny CLIP ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return coloured_set()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return tiny(tmp_path_factory.mktemp("tiny"))


def test_distillation_loss_is_the_mean_absolute_difference() -> None:
    student, teacher = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    assert distillation_loss(student, teacher).item() == pytest.approx((1 + 4) / 2)


def test_stage1_learns_what_zero_shot_does_not_know(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    zero = hpdval.evaluate(
        hpdval.zero_shot(clip, colours.test, CLASSES, show=False), colours.test.targets, colours.class_counts
    )
    experiment = recipe(**{"stage1.epochs": 25, "stage1.kd_weight": 0.0})
    scorer = train_stage1(colours, experiment, run=tmp_path / "s1", clip=clip, show=False)
    result = json.loads((tmp_path / "s1" / "result.json").read_text())
    assert result["total"] > zero.total + 10
    assert str(Protocol.of(result)) == f"colours test, {len(colours.test)} images, read-out raw, nothing selected"
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items()), "the start is left alone"
    predictions = read_predictions(tmp_path / "s1")
    assert np.array_equal(predictions["scores"], scorer.score(colours.test, show=False))
    assert predictions["ids"].tolist() == list(colours.test.ids)
    loaded = hpdval.load_run(tmp_path / "s1", device="cpu")
    assert np.array_equal(loaded.score(colours.test, show=False), predictions["scores"])
    again = train_stage1(colours, experiment, run=tmp_path / "s1", clip=clip, show=False)
    assert np.array_equal(again.score(colours.test, show=False), predictions["scores"]), "a finished run is only loaded"


def test_only_the_visual_encoder_learns_in_stage1(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    scorer = train_stage1(colours, recipe(**{"stage1.epochs": 1}), run=tmp_path, clip=clip, show=False)
    old, new = clip.model.state_dict(), scorer.clip.model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("visual.") for name in changed)
    assert any("ln_post" in name for name in changed)
    assert "visual.proj" in changed


def test_the_open_bias_is_where_the_loss_of_the_starting_scores_is_least() -> None:
    from hpdval.training.objective import Objective

    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(200, 3, generator=generator) < 0.2).float()
    scores = 0.2 + 0.05 * torch.randn(200, 3, generator=generator) + 0.05 * targets
    for name in ("bce", "db_focal"):
        experiment = recipe(**{"stage1.loss.name": name})
        objective = Objective(experiment.stage1, experiment.score, targets.sum(0), 200)
        objective.fit_bias(scores, targets)
        fitted = objective.logits.bias.item()
        losses = {b: objective.loss(20 * scores + b, targets).item() for b in np.linspace(-15, 5, 2001)}
        assert fitted == pytest.approx(min(losses, key=losses.__getitem__), abs=0.02)


def test_teacher_is_separate_so_distillation_starts_at_zero_and_grows(colours: Dataset, clip: Clip) -> None:
    import copy

    from hpdval.models.prompts import hand_crafted
    from hpdval.training.objective import starting_objective

    experiment = recipe()
    student = copy.deepcopy(clip)
    text = hand_crafted(clip, CLASSES)
    images = np.stack([colours.train.image(i) for i in range(8)])
    stored = np.stack([colours.train.image(i) for i in range(len(colours.train))])
    objective = starting_objective(experiment.stage1, experiment, colours, clip, text, stored)
    task = DualViewAlignment(student, clip, CLASSES, objective, experiment)
    batch = {
        "images": torch.from_numpy(images).permute(0, 3, 1, 2),
        "targets": torch.from_numpy(colours.train.targets[:8]).float(),
        "ids": [],
    }
    assert task.losses(batch)["kd"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        student.visual.conv1.weight.mul_(1.5)
    assert task.losses(batch)["kd"].item() > 1e-3


def test_stage2_moves_contexts_alone_and_shares_the_encoders_file(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    train_stage1(colours, recipe(**{"stage1.epochs": 1}), run=tmp_path / "s1", clip=clip, show=False)
    scorer = train_stage2(colours, recipe(), run=tmp_path / "s2", start=tmp_path / "s1", show=False)
    first, second = (tmp_path / name / "clip.safetensors" for name in ("s1", "s2"))
    assert first.samefile(second)
    assert set(scorer.contexts) == {"global", "local"}
    assert not torch.equal(scorer.text_global, scorer.text_local)
    shift = next(r["context_shift"] for r in read_metrics(tmp_path / "s2") if "context_shift" in r)
    assert min(shift.values()) > 0
    assert torch.allclose(scorer.clip.encode_prompts(scorer.contexts["global"], CLASSES), scorer.text_global, atol=1e-6)
    assert np.array_equal(
        hpdval.load_run(tmp_path / "s2", device="cpu").score(colours.test, show=False),
        read_predictions(tmp_path / "s2")["scores"],
    )


def test_stage2_that_adapts_to_rarity_gives_each_class_contexts_of_its_own(
    tmp_path: Path, colours: Dataset, clip: Clip
) -> None:
    experiment, start = recipe(**{"stage2.shrinkage": 20.0}), zero_shot_scorer(clip, CLASSES)
    scorer = train_stage2(colours, experiment, run=tmp_path, start=start, show=False)
    loaded = hpdval.load_run(tmp_path, device="cpu")
    for contexts, text in ((scorer.contexts, scorer.text_global), (loaded.contexts, loaded.text_global)):
        assert set(contexts) == {"global", "local", "global residual", "local residual"}
        each = contexts["global"] + contexts["global residual"]  # (C, M, W)
        assert torch.allclose(clip.encode_prompts(each[None], CLASSES)[0], text, atol=1e-6)
    shift = next(r["context_shift"] for r in read_metrics(tmp_path) if "context_shift" in r)
    assert set(shift) == set(scorer.contexts)
    assert min(shift.values()) > 0
    assert np.array_equal(loaded.score(colours.test, show=False), read_predictions(tmp_path)["scores"])


@pytest.mark.parametrize("prompts", ["global", "local"])
def test_the_other_prompt_set_stays_hand_crafted(tmp_path: Path, colours: Dataset, clip: Clip, prompts: str) -> None:
    from hpdval.models.prompts import hand_crafted

    experiment = recipe(**{"stage2.prompts": prompts, "stage2.epochs": 1, "stage2.sc_anchor": prompts})
    scorer = train_stage2(colours, experiment, run=tmp_path, start=zero_shot_scorer(clip, CLASSES), show=False)
    fixed = hand_crafted(clip, CLASSES)
    assert torch.equal(scorer.text_global, fixed) is (prompts == "local")
    assert torch.equal(scorer.text_local, fixed) is (prompts == "global")


@pytest.mark.parametrize(("selection", "best"), [("last", False), ("validation", True)])
def test_the_selection_rule_is_followed_and_recorded(
    tmp_path: Path, colours: Dataset, clip: Clip, selection: str, best: bool
) -> None:
    held_out = replace(colours, train=colours.train.subset(range(40)), val=colours.train.subset(range(40, 60)))
    values = {"stage1.epochs": 4, "stage1.lr": 5e-3, "stage1.schedule": "constant", "stage1.ema_decay": 0.5}
    experiment = recipe(**values, selection=selection, val=0.3)
    scorer = train_stage1(held_out, experiment, run=tmp_path, clip=clip, show=False)
    curve = [record["val_map"] for record in read_metrics(tmp_path) if "val_map" in record]
    assert len(curve) == 4
    assert len(set(curve)) > 1
    found = hpdval.evaluate(scorer.score(held_out.val, show=False), held_out.val.targets, held_out.class_counts).total
    assert found == pytest.approx(max(curve) if best else curve[-1])
    assert json.loads((tmp_path / "result.json").read_text())["selection"] == (
        "best epoch on validation" if best else "none (last epoch)"
    )


def test_selection_on_test_images_keeps_the_best_and_says_so(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    values = {"stage1.epochs": 4, "stage1.lr": 5e-3, "score.reading": "released", "readout": "l2"}
    experiment = replace(recipe(**values), selection="test")
    scorer = train_stage1(colours, experiment, run=tmp_path, clip=clip, show=False)
    curve = [record["test_map"] for record in read_metrics(tmp_path) if "test_map" in record]
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(curve) == 4
    assert result["total"] == pytest.approx(max(curve))
    assert result["selection"] == "best epoch on TEST images"
    assert scorer.score_config.reading == "released"
    later = recipe(**{"stage2.epochs": 1, "score.reading": "released", "readout": "l2"})
    train_stage2(colours, later, run=tmp_path / "s2", start=tmp_path, show=False)
    result = json.loads((tmp_path / "s2" / "result.json").read_text())
    assert result["selection"] == "none (last epoch); its start: best epoch on TEST images", "what was chosen stays so"
    assert Protocol.of(result).selection == "selected on the test images"
    train_stage2(colours, later, run=tmp_path / "s3", start=tmp_path / "s2", show=False)
    result = json.loads((tmp_path / "s3" / "result.json").read_text())
    assert Protocol.of(result).selection == "selected on the test images", "however many stages follow"
    table = tables.results_table({"chosen": tmp_path, "later": tmp_path / "s3"})
    assert table["method"].tolist() == ["chance", "chosen *", "later *"]
    assert "selected on the test images" in table.attrs["footnotes"][0]
    differences = tables.comparison_table({"a - b": (tmp_path / "s3", tmp_path)}, resamples=20)
    assert set(differences["comparison"]) == {"a - b *"}
    honest = train_stage1(colours, recipe(**values), run=tmp_path / "honest", clip=clip, show=False)
    assert honest.selection == "none (last epoch)"
    with pytest.raises(RunError, match="differ in selection"):
        tables.read_runs([tmp_path, tmp_path / "honest"])


def test_results_are_read_out_with_their_own_alpha_and_k(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    experiment = recipe(**{"stage1.epochs": 1, "eval_alpha": 0.5, "eval_k": 2})
    scorer = train_stage1(colours, experiment, run=tmp_path, clip=clip, show=False)
    assert (scorer.score_config.alpha, scorer.score_config.k) == (0.5, 2)
    assert experiment.score.alpha == 0.4, "training keeps its own"


def test_the_text_tower_learns_along_where_asked(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    from hpdval.models.prompts import hand_crafted

    experiment = recipe(**{"stage1.epochs": 2, "stage1.train_text": True, "stage1.ema_decay": 0.5})
    scorer = train_stage1(colours, experiment, run=tmp_path, clip=clip, show=False)
    changed = {
        name
        for name, after in scorer.clip.model.state_dict().items()
        if not torch.equal(after, clip.model.state_dict()[name])
    }
    assert any(name.startswith("visual.") for name in changed)
    assert {"token_embedding.weight", "text_projection", "ln_final.weight"} <= changed
    assert "logit_scale" not in changed
    assert torch.allclose(scorer.text_global, hand_crafted(scorer.clip, CLASSES), atol=1e-6), "T_H is the tower's own"
    assert not torch.allclose(scorer.text_global, hand_crafted(clip, CLASSES))


def test_a_teacher_that_is_the_student_teaches_nothing(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    """In the released script both are one module: L_kd is 0, and so is its gradient."""
    same = recipe(**{"stage1.epochs": 1, "stage1.teacher": "same", "stage1.kd_weight": 1.0})
    none = recipe(**{"stage1.epochs": 1, "stage1.kd_weight": 0.0})
    first = train_stage1(colours, same, run=tmp_path / "same", clip=clip, show=False)
    second = train_stage1(colours, none, run=tmp_path / "none", clip=clip, show=False)
    assert first.clip.weights_sha256 == second.clip.weights_sha256
    assert {r["kd"] for r in read_metrics(tmp_path / "same") if "kd" in r} == {0.0}


def test_students_of_every_reading_train_and_come_back(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    experiment = recipe(**{"stage1.epochs": 2, "stage1.projection": "head", "normalise": False})
    scorer = train_stage1(colours, experiment, run=tmp_path / "s1", clip=clip, show=False)
    assert scorer.clip.preprocess.mean == (0.0, 0.0, 0.0)
    again = hpdval.load_run(tmp_path / "s1", device="cpu")
    assert np.array_equal(again.score(colours.test, show=False), read_predictions(tmp_path / "s1")["scores"])
    second = train_stage2(colours, experiment, run=tmp_path / "s2", start=tmp_path / "s1", show=False)
    assert second.clip.fingerprint == scorer.clip.fingerprint
    with pytest.raises(RunError, match=r"config\.stage1\.projection"):
        train_stage1(colours, recipe(**{"stage1.epochs": 2}), run=tmp_path / "s1", clip=clip, show=False)


def test_prompts_alone_see_unnormalised_pixels_where_the_reading_does(
    tmp_path: Path, colours: Dataset, clip: Clip
) -> None:
    experiment = recipe(**{"stage2.epochs": 1, "normalise": False})
    scorer = train_stage2(colours, experiment, run=tmp_path, start=zero_shot_scorer(clip, CLASSES), show=False)
    assert scorer.clip.preprocess.std == (1.0, 1.0, 1.0)
    assert clip.preprocess.std != (1.0, 1.0, 1.0)


def test_joint_training_moves_encoder_and_contexts_at_once(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    experiment = recipe(**{"stage1.epochs": 3, "stage1.kd_weight": 0.5})
    scorer = train_joint(colours, experiment, run=tmp_path, clip=clip, show=False)
    records = [r for r in read_metrics(tmp_path) if "loss" in r]
    assert {"cls", "kd", "sc", "loss"} <= records[-1].keys()
    assert records[-1]["loss"] == pytest.approx(sum(records[-1][name] for name in ("cls", "kd", "sc")), abs=1e-5)
    assert records[-1]["cls"] < records[0]["cls"]
    assert scorer.clip.weights_sha256 != clip.weights_sha256
    shift = next(r["context_shift"] for r in read_metrics(tmp_path) if "context_shift" in r)
    assert min(shift.values()) > 0
    assert set(scorer.contexts) == {"global", "local"}
    loaded = hpdval.load_run(tmp_path, device="cpu")
    assert np.array_equal(loaded.score(colours.test, show=False), read_predictions(tmp_path)["scores"])


def test_joint_training_uses_each_stages_learning_rate(colours: Dataset, clip: Clip) -> None:
    from hpdval.models.prompts import hand_crafted
    from hpdval.models.student import make_student
    from hpdval.training.joint import JointTraining
    from hpdval.training.objective import Objective
    from hpdval.training.stage2 import PromptTuning

    experiment = recipe(**{"stage1.lr": 1e-4, "stage2.lr": 1e-2, "stage1.scale_lr": 1e-3})
    student = make_student(clip)
    objective = Objective(experiment.stage1, experiment.score, torch.tensor([5, 5, 5]), 20)
    tuning = PromptTuning(student, CLASSES, hand_crafted(clip, CLASSES), objective, experiment)
    task = JointTraining(DualViewAlignment(student, clip, CLASSES, objective, experiment), tuning)
    rates = {id(p): group["lr"] for group in task.parameter_groups() for p in group["params"]}
    trained = {name: rates[id(p)] for name, p in task.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained), "every trained parameter is in one group"
    for name, lr in trained.items():
        assert lr == (1e-2 if "contexts" in name else 1e-3 if "logits" in name else 1e-4), name
    assert all(name.split("visual.")[0] != name for name, lr in trained.items() if lr == 1e-4), "the encoder alone"


@pytest.mark.parametrize(
    ("stages", "methods"),
    [
        ("sequence", ["zero-shot", "stage 1", "stage 2"]),
        ("separate", ["zero-shot", "stage 1", "stage 2"]),
        ("stage1", ["zero-shot", "stage 1"]),
        ("stage2", ["zero-shot", "stage 2"]),
        ("joint", ["zero-shot", "joint"]),
    ],
)
def test_train_runs_the_stages_an_experiment_names(
    tmp_path: Path, colours: Dataset, clip: Clip, stages: str, methods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = recipe(**{"stage1.epochs": 1, "stage2.epochs": 1, "stages": stages})
    runs = hpdval.train(colours, experiment, run=tmp_path, clip=clip, show=False)
    assert list(runs) == methods
    for method, folder in runs.items():
        assert json.loads((folder / "result.json").read_text())["method"] == method
    if "stage 2" in runs:
        start = json.loads((runs["stage 2"] / "run.json").read_text())["inputs"]["start"]
        assert start == ("stage 1" if stages == "sequence" else "zero-shot")
    monkeypatch.setattr("hpdval.training.loop.Trainer.step", None)  # a second call trains nothing
    assert hpdval.train(colours, experiment, run=tmp_path, clip=clip, show=False) == runs


def test_experiments_that_agree_in_stage_1_share_its_run(
    tmp_path: Path, colours: Dataset, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, **overrides: Any) -> dict[str, Path]:
        short = {"stage1.epochs": 1, "stage2.epochs": 1, **overrides}
        return hpdval.train(
            colours, recipe(**short), run=tmp_path / name, shared=tmp_path / "shared", clip=clip, show=False
        )

    first = train("first")
    assert first["stage 1"].parent == first["zero-shot"].parent == tmp_path / "shared"
    assert first["stage 2"].parent == tmp_path / "first"
    for method in ("zero-shot", "stage 1"):
        key = json.loads((first[method] / "manifest.json").read_text())["key"]
        assert first[method].name == f"{method.replace(' ', '')}-{key[:12]}"
    other_loss = train("loss", **{"stage1.loss.name": "bce"})
    assert other_loss["stage 1"] != first["stage 1"]
    other_seed = train("seed", seed=1)
    assert other_seed["zero-shot"] == first["zero-shot"], "nothing random happens there"
    assert other_seed["stage 1"] != first["stage 1"]

    both_views = hpdval.zero_shot_scorer(clip, colours.classes, score=ScoreConfig(alpha=0.4))
    with pytest.raises(RunError, match=r"score\.alpha: 1\.0 there, 0\.4 here"):
        hpdval.open_run(first["zero-shot"], "zero-shot", colours, recipe(), both_views)

    with monkeypatch.context() as forbidden:
        forbidden.setattr("hpdval.training.stage1._train", None)  # whoever trains stage 1 again fails
        other = train("other", **{"stage2.lr": 1e-3})
    assert other["stage 1"] == first["stage 1"]
    alone = hpdval.train(colours, recipe(**{"stage1.epochs": 1, "stage2.epochs": 1, "stage2.lr": 1e-3}),
                         run=tmp_path / "alone", clip=clip, show=False)  # fmt: skip
    shared, own = (np.load(runs["stage 2"] / "predictions.npz")["scores"] for runs in (other, alone))
    assert np.array_equal(shared, own), "sharing changes nothing"


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_updates_are_masked_until_the_losses_are_read(tmp_path: Path, precision: str) -> None:
    """On CUDA the losses are read every few updates: nothing that follows a bad one may reach the weights."""
    task = Line()
    task.precision = precision
    config = TrainingConfig(epochs=4, batch_size=2, lr=0.1)
    plan = Plan(10, 2, 1, 4, 3)
    poison = int(plan.micro_batches(0)[2][0])
    batches = LineBatches(10, poison=poison)
    with Run(tmp_path, kind="line", config={}) as run:
        trainer = Trainer(task, config, plan, run, "line")
        trainer.read_every = 100
        weights = []
        for group in plan.micro_batches(0):
            batch = next(iter(batches([group], 0)))
            trainer.step([batch])
            weights.append(task.layer.weight.item())
        assert len(set(weights[:2])) == 2, "good updates were made"
        assert set(weights[2:]) == {weights[1]}, "none from the bad one on"
        with pytest.raises(NonFiniteLossError, match=f"at update 2 .*image {poison}"):
            trainer.save()
        assert not trainer.path.exists(), "the last good checkpoint would have stayed"
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_float16_does_not_skip_updates_for_ever(tmp_path: Path) -> None:
    """Its scaler leaves out updates that overflow; a gradient that is never finite must not pass for a training."""

    class Endless(Line):
        precision = "float16"

        def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
            value = super().losses(batch)["mse"]
            value.register_hook(lambda gradient: gradient * math.nan)
            return {"mse": value}

    config = TrainingConfig(epochs=20, batch_size=5)
    with (
        Run(tmp_path, kind="line", config={}) as run,
        pytest.raises(NonFiniteLossError, match="gradient is not finite"),
    ):
        fit(Endless(), LineBatches(10), config, run, stage="line", n_images=10, seed=3, show=False)
    assert 10 < len(read_metrics(tmp_path)) < 40


def test_what_stage_2_would_refuse_is_refused_before_stage_1(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    with pytest.raises(ConfigError, match="init 'a photo of a' has 4 tokens, not the 8"):
        hpdval.train(colours, recipe(**{"stage2.init": "a photo of a", "stage2.contexts": 8}), run=tmp_path, clip=clip)
    assert not (tmp_path / "stage1").exists()


@pytest.mark.parametrize("precision", ["bfloat16", "pure-bfloat16", "float16"])
def test_numeric_modes_learn_and_resume_exactly(
    tmp_path: Path, colours: Dataset, clip: Clip, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = recipe(**{"stage1.precision": precision, "stage1.epochs": 4})
    whole = train_stage1(colours, experiment, run=tmp_path / "whole", clip=clip, show=False)
    losses = [r["cls"] for r in read_metrics(tmp_path / "whole") if "cls" in r]
    assert losses[-1] < 0.8 * losses[0]
    step = Trainer.step

    def stopped(self: Trainer, batches: Any) -> None:
        if self.update == 5:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Trainer, "step", stopped)
    monkeypatch.setattr("hpdval.training.loop.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_stage1(colours, experiment, run=tmp_path / "cut", clip=clip, show=False)
    monkeypatch.setattr(Trainer, "step", step)
    resumed = train_stage1(colours, experiment, run=tmp_path / "cut", clip=clip, show=False)
    assert resumed.clip.weights_sha256 == whole.clip.weights_sha256


def test_a_resumed_run_uses_the_threads_it_began_with(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counted(Line):
        def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
            seen.append(torch.get_num_threads())
            return super().losses(batch)

    before = torch.get_num_threads()
    config = TrainingConfig(epochs=2, batch_size=5)
    try:
        for threads, stop in ((1, 2), (2, None)):
            torch.set_num_threads(threads)
            with Run(tmp_path, kind="line", config={}) as run, contextlib.suppress(Interrupted):
                batches = LineBatches(10, stop_after=stop)
                fit(Counted(), batches, config, run, stage="line", n_images=10, seed=3, show=False)
            assert torch.get_num_threads() == threads, "what comes afterwards is not touched"
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 4
    assert set(seen) == {1}


def test_a_teacher_of_views_that_never_change_is_asked_once(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    still = {"stage1.augment.flip": False, "stage1.augment.cutout": 0.0, "stage1.augment.randaugment_ops": 0}
    experiment = recipe(**still, **{"stage1.epochs": 2, "stage1.kd_weight": 1.0})
    store = ImageStore.open(colours.train, clip.image_size, mode=experiment.resize)
    cached = view_batches(store, colours, experiment, clip)
    for batch in cached([np.array([3, 1, 7])], 0):
        direct = clip.encode_image(batch["images"]).cls
        assert torch.allclose(batch["teacher"], direct, atol=1e-5)
    assert view_batches(store, colours, recipe(), clip).teacher is None, "views that change are asked anew"
    train_stage1(colours, experiment, run=tmp_path, clip=clip, show=False)
    kd = [r["kd"] for r in read_metrics(tmp_path) if "kd" in r]
    assert kd[0] == pytest.approx(0, abs=1e-5)
    assert kd[-1] > 1e-4


def test_views_drawn_where_the_images_are_resident_are_the_same(colours: Dataset, clip: Clip) -> None:
    store = ImageStore.open(colours.train, clip.image_size, mode="squash")
    usual, resident = (view_batches(store, colours, recipe(), clip) for _ in range(2))
    assert usual.images is None
    resident.images = torch.from_numpy(np.array(store.images))
    chosen = [np.array([5, 2]), np.array([9])]
    for first, second in zip(usual(chosen, 1), resident(chosen, 1), strict=True):
        assert torch.equal(first["images"], second["images"])
        assert first["ids"] == second["ids"]


def test_stage2_follows_the_data_sets_classes_not_those_of_its_start(
    tmp_path: Path, colours: Dataset, clip: Clip
) -> None:
    experiment = recipe(**{"stage2.epochs": 1})
    usual = train_stage2(colours, experiment, run=tmp_path / "a", start=zero_shot_scorer(clip, CLASSES), show=False)
    turned = zero_shot_scorer(clip, CLASSES[::-1])
    other = train_stage2(colours, experiment, run=tmp_path / "b", start=turned, show=False)
    assert other.classes == CLASSES
    assert torch.equal(other.text_global, usual.text_global)


def test_a_changed_encoder_is_written_and_never_linked(tmp_path: Path, clip: Clip) -> None:
    from hpdval.scoring import load_scorer, zero_shot_scorer

    zero_shot_scorer(clip, CLASSES).save(tmp_path / "a")
    scorer = load_scorer(tmp_path / "a")
    scorer.save(tmp_path / "b")
    assert (tmp_path / "a" / "clip.safetensors").samefile(tmp_path / "b" / "clip.safetensors")
    with torch.no_grad():
        scorer.clip.visual.conv1.weight.add_(1.0)
    scorer.save(tmp_path / "c")
    assert not (tmp_path / "a" / "clip.safetensors").samefile(tmp_path / "c" / "clip.safetensors")
    assert torch.equal(load_scorer(tmp_path / "c").clip.visual.conv1.weight, scorer.clip.visual.conv1.weight)


def test_zero_shot_is_the_global_view_in_either_reading(colours: Dataset, clip: Clip) -> None:
    paper = hpdval.zero_shot(clip, colours.test, CLASSES, show=False)
    released = hpdval.zero_shot(clip, colours.test, CLASSES, reading="released", show=False)
    assert np.abs(paper - hpdval.zero_shot(clip, colours.test, CLASSES, alpha=1.0, show=False)).max() == 0
    local = hpdval.zero_shot(clip, colours.test, CLASSES, alpha=1.0, reading="released", show=False)
    assert np.abs(released - local).max() > 1e-3
    rows = released / np.linalg.norm(released, axis=1, keepdims=True)
    assert np.allclose(rows, released, atol=1e-5), "the released reading normalises over classes"


def test_same_seed_same_bits_and_another_seed_differs(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    scores = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        experiment = replace(recipe(**{"stage1.epochs": 1}), seed=seed)
        train_stage1(colours, experiment, run=tmp_path / name, clip=clip, show=False)
        scores.append(read_predictions(tmp_path / name)["scores"])
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_workers_change_nothing(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    scores = []
    for workers in (0, 2):
        experiment = recipe(**{"stage1.epochs": 1, "stage1.workers": workers})
        train_stage1(colours, experiment, run=tmp_path / str(workers), clip=clip, show=False)
        scores.append(read_predictions(tmp_path / str(workers))["scores"])
    assert np.array_equal(*scores)


def test_another_experiment_in_the_same_folder_is_refused(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    train_stage1(colours, recipe(**{"stage1.epochs": 1}), run=tmp_path, clip=clip, show=False)
    with pytest.raises(RunError, match=r"stage1\.lr"):
        train_stage1(colours, recipe(**{"stage1.epochs": 1, "stage1.lr": 1e-3}), run=tmp_path, clip=clip, show=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("auto", 5e-2)])
def test_both_stages_on_a_gpu_agree_with_the_cpu(
    tmp_path: Path, colours: Dataset, clip: Clip, precision: str, tolerance: float
) -> None:
    import copy

    values = {f"stage{n}.{name}": value for n in (1, 2) for name, value in (("epochs", 1), ("precision", precision))}
    scores = {}
    for device in ("cpu", "cuda"):
        run, start = tmp_path / device, copy.deepcopy(clip)
        train_stage1(colours, recipe(**values), run=run / "1", clip=start, device=device, show=False)
        train_stage2(colours, recipe(**values), run=run / "2", start=run / "1", device=device, show=False)
        scores[device] = read_predictions(run / "2")["scores"]
        assert json.loads((run / "2" / "manifest.json").read_text())["inputs"]["device"] == device
    assert np.abs(scores["cuda"] - scores["cpu"]).max() < tolerance
