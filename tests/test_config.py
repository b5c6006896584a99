"""Experiments are data: fields know their ranges, overrides are checked by name, type and value."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from hpdval.config import LOSS_NAMES, Experiment, LossConfig, ScoreConfig, Stage1Config
from hpdval.errors import ConfigError
from hpdval.overrides import field_names, override, parse_overrides
from hpdval.recipes import RECIPES, differences, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete_and_named(name: str) -> None:
    experiment = get_recipe(name)
    assert experiment.name == name
    assert RECIPES[name].__doc__, "a recipe states its expected result and command"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stage1.epoch": 3}, "stage1.epochs"),
        ({"epochs": 3}, "stage1.epochs"),
        ({"stage1": 3}, "stage1.lr"),
        ({"stage1.lr": "fast"}, "must be float"),
        ({"stage1.lr": 0.0}, "more than 0"),
        ({"stage1.lr": math.nan}, "more than 0"),
        ({"stage1.epochs": 2.5}, "must be int"),
        ({"stage1.epochs": True}, "must be"),
        ({"stage1.epochs": "0"}, "at least 1"),
        ({"score.alpha": 1.5}, "at most 1"),
        ({"score.reading": "papr"}, "'paper', 'released'"),
        ({"stage1.augment.flip": "maybe"}, "must be bool"),
        ({"selection": "validation"}, "val=0.2"),
        ({"selection": "test"}, "only for recipes that state it; choose last, validation"),
        ({"eval_k": 1.5}, "a share of at most 1"),
        ({"stage1.projection": "mlp"}, "'clip', 'head'"),
        ({"template": "a photo"}, "must hold {}"),
        ({"stage1.loss.name": "db_focl"}, "'db_focal'"),
        ({"stage1.loss.nu": "paper"}, "None, 'released', 'printed'"),
        ({"stage1.loss.denominator": "some"}, "None, 'positives', 'all'"),
        ({"stage1.loss.focal": "elements"}, "None, 'none', 'element', 'scalar'"),
        ({"stage1.loss.weights": "often"}, "a number, 'frequency' or None"),
        ({"stage1.loss.weights": "nan"}, "at least 0"),
        ({"stage1.loss.gamma": 0.5}, "0 or at least 1"),
        ({"score.k": 1.5}, "a share of at most 1"),
        ({"score.k": 0}, "more than 0"),
        ({"stage1.bias": math.inf}, "must be finite"),
        ({"stage1.ema_decay": 1.0}, "at least 0 and less than 1"),
    ],
)
def test_wrong_overrides_are_refused_in_one_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_recipe("scenes", **values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_read_as_the_type_of_their_field() -> None:
    changed = get_recipe(
        "scenes", **{"stage1.lr": "7e-4", "stage1.bias": "none", "stage1.augment.flip": "false", "score.k": "8"}
    )
    assert changed.stage1.lr == 7e-4
    assert changed.stage1.bias is None
    assert changed.stage1.augment.flip is False
    assert changed.score.k == 8
    assert isinstance(changed.score.k, int)  # eight patches
    assert isinstance(get_recipe("scenes", **{"score.k": "1.0"}).score.k, float)  # all of them
    assert get_recipe("scenes").stage1.lr != 7e-4, "the recipe itself is untouched"


def test_what_is_text_or_a_number_is_a_number_where_it_can_be() -> None:
    loss = get_recipe("scenes", **{"stage1.loss.weights": "2", "stage1.loss.focal": "none"}).stage1.loss
    assert (loss.weights, loss.focal) == (2.0, "none")
    assert get_recipe("scenes", **{"stage1.loss.weights": "frequency"}).stage1.loss.weights == "frequency"
    loss = get_recipe("released", **{"stage1.loss.weights": "none", "stage1.loss.focal": "null"}).stage1.loss
    assert (loss.weights, loss.focal) == (None, None)
    assert get_recipe("scenes", **{"stage2.init": "4"}).stage2.init == "4"


def test_the_names_of_losses_and_variants_are_those_of_the_losses() -> None:
    """They are written twice, because the configuration does without torch."""
    losses = pytest.importorskip("hpdval.losses")
    assert list(losses.LOSSES) == list(LOSS_NAMES)
    for item in fields(LossConfig):
        for value in [v for v in item.metadata.get("choices", ()) if v is not None and item.name != "name"]:
            losses.build_loss(LossConfig(name="db", **{item.name: value}), [5, 3], 10)
        if item.name in ("nu", "denominator", "focal"):
            with pytest.raises(ConfigError) as caught:
                losses.build_loss("db", [5, 3], 10, **{item.name: "?"})
            allowed = str(caught.value).split("one of ")[1].split(", got")[0]
            assert allowed.split(", ") == list(item.metadata["choices"][1:])


def test_every_field_can_be_overridden_by_its_own_value() -> None:
    experiment = get_recipe("released")
    values = {}
    for name in field_names(experiment):
        value: object = experiment
        for part in name.split("."):
            value = getattr(value, part)
        values[name] = value
    assert override(experiment, values) == experiment


def test_only_the_released_recipe_selects_on_test_images() -> None:
    assert [name for name in RECIPES if get_recipe(name).selection == "test"] == ["released"]
    for dataset in ("voc-lt", "coco-lt", "scenes-lt"):
        for name in {*RECIPES} - {"released"}:
            assert get_recipe(name, dataset=dataset).selection == "last"
            with pytest.raises(ConfigError):
                get_recipe(name, dataset=dataset, selection="test")
    with pytest.raises(ConfigError, match="released reading alone"):
        Experiment(name="mine", selection="test")
    assert get_recipe("released", selection="last").selection == "last"  # the honest variant is always open


def test_results_may_be_read_out_with_another_alpha_and_k() -> None:
    released = get_recipe("released")
    assert (released.score.alpha, released.score.k) == (0.4, 32 / 196)
    assert released.evaluation_score == ScoreConfig(alpha=0.5, k=16 / 196, reading="released")
    assert get_recipe("paper").evaluation_score == get_recipe("paper").score


def test_what_a_kind_of_run_depends_on() -> None:
    base = get_recipe("hpdval")

    def same(kind: str, **changed: Any) -> bool:
        return get_recipe("hpdval", **changed).relevant_to(kind) == base.relevant_to(kind)

    assert same("stage1", **{"stage2.lr": 1e-2, "stages": "stage1"})
    assert not same("stage1", **{"stage1.lr": 1e-2})
    assert not same("stage1", seed=1)
    assert not same("stage1", **{"score.alpha": 0.5})
    assert same("zero-shot", seed=1, normalise=False, **{"stage1.lr": 1e-2, "score.alpha": 0.5})
    assert not same("zero-shot", template="a drawing of a {}.")
    assert not same("zero-shot", readout="l2")
    parts = [get_recipe("hpdval", val=0.2, seed=seed).relevant_to("zero-shot") for seed in (0, 1)]
    assert parts[0] != parts[1], "the seed draws the validation part"
    for kind in ("stage2", "joint"):
        assert base.relevant_to(kind) == base


@pytest.mark.parametrize("name", ["paper", "released", "hpdval"])
def test_scenes_lt_changes_sizes_and_leaves_the_reading(name: str) -> None:
    usual, small = get_recipe(name), get_recipe(name, dataset="scenes-lt")
    assert (small.clip, small.pretrained) == ("scenes", None)
    assert small.stage1.lr == pytest.approx(30 * usual.stage1.lr)
    differ = {n for n in field_names(usual) if attrgetter(n)(usual) != attrgetter(n)(small)}
    sizes = {"student", "epochs", "lr", "kd_weight", "augment.randaugment_ops", "augment.randaugment_magnitude"}
    sizes |= {"augment.cutout"}
    assert differ <= {"dataset", "clip", "pretrained", *(f"stage1.{n}" for n in sizes)}
    assert get_recipe("scenes", dataset="scenes-lt") == get_recipe("scenes")


def test_dataset_constants_follow_the_dataset() -> None:
    coco = get_recipe("released", dataset="coco-lt")
    assert (coco.stage1.loss.mu, coco.stage1.loss.lam, coco.stage1.loss.pos_scale) == (0.2, 2.0, 5.0)
    assert coco.stage2.loss.pos_scale is None
    voc = get_recipe("released", dataset="voc-lt")
    assert (voc.stage1.loss.mu, voc.stage1.loss.lam, voc.stage1.loss.pos_scale) == (0.3, 5.0, 10.0)
    assert get_recipe("hpdval", dataset="my.csv").stage1.loss == get_recipe("hpdval").stage1.loss


def test_the_page_of_the_method_lists_what_recipes_differ_in() -> None:
    page = (Path(__file__).parent.parent / "docs/method.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    header = next(line for line in lines if line[0] == "field")
    listed = {line[0]: line[1:] for line in lines[lines.index(header) + 1 :]}
    assert header[1:] == ["`paper`", "`released`", "`hpdval`", "`scenes`"]
    found = differences(*(name.strip("`") for name in header[1:]))
    assert listed == {f"`{name}`": list(map(str, each)) for name, each in found.items()}


@pytest.mark.parametrize("name", ["paper", "released", "hpdval"])
def test_a_recipe_states_what_to_expect_and_how_to_run_it(name: str) -> None:
    words = RECIPES[name].__doc__ or ""
    assert "Expected" in words
    assert f"hpdval run 05 -p recipe={name} -p dataset=voc-lt" in " ".join(words.split())


def test_paper_recipe_states_the_papers_settings() -> None:
    experiment = get_recipe("paper")
    assert (experiment.stage1.projection, experiment.stage1.teacher) == ("head", "separate")
    assert experiment.stage1.student.startswith("vit_base_patch16_224")
    assert (experiment.stage1.loss.name, experiment.stage1.loss.denominator) == ("db_star", "all")
    assert (experiment.stage1.lr, experiment.stage1.weight_decay) == (1e-5, 1e-4)
    assert (experiment.stage1.batch_size, experiment.stage1.epochs) == (32, 20)
    assert (experiment.stage2.lr, experiment.stage2.epochs, experiment.stage2.contexts) == (5e-6, 10, 4)
    assert (experiment.score.alpha, experiment.score.k, experiment.score.reading) == (0.4, 32 / 196, "paper")


@pytest.mark.parametrize("text", ["stage1.lr", "=3", "stage1.lr=1 stage1.lr=2", "a='x"])
def test_malformed_override_strings_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_overrides(text)


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        ScoreConfig().alpha = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Stage1Config(3)  # type: ignore[misc]


def test_recipes_do_not_import_torch() -> None:
    code = "import sys, hpdval.recipes; hpdval.recipes.get_recipe('paper'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_as_dict_rebuilds_the_score() -> None:
    experiment = Experiment(name="x")
    assert ScoreConfig(**experiment.as_dict()["score"]) == experiment.score


@pytest.mark.parametrize("recipe", ["hpdval", "paper", "released"])
@pytest.mark.parametrize("dataset", ["voc-lt", "coco-lt"])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_fits_every_recipe(recipe: str, dataset: str, loss: str) -> None:
    """The paper's ablation of losses: another loss begins with its own constants, not with those of the recipe's."""
    losses = pytest.importorskip("hpdval.losses")
    experiment = get_recipe(recipe, dataset=dataset, **{"stage1.loss.name": loss, "stage2.loss.name": loss})
    for config in (experiment.stage1.loss, experiment.stage2.loss):
        losses.build_loss(config, [50, 3], 100)
        rebalanced = loss in ("db", "db_focal", "db_star")
        assert (config.mu, config.lam) == ((0.2, 2.0) if rebalanced and dataset == "coco-lt" else (0.3, 5.0))
    if loss != get_recipe(recipe).stage1.loss.name:
        assert experiment.stage1.loss.denominator is None
        assert experiment.stage1.loss.pos_scale is None


def test_what_clashes_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="joint training keeps the text tower fixed"):
        get_recipe("released", stages="joint")


def test_scenes_lt_with_another_clip_keeps_that_clips_sizes() -> None:
    large = get_recipe("paper", dataset="scenes-lt", clip="ViT-B-16-quickgelu", pretrained="openai")
    assert large.dataset == "scenes-lt"
    assert (large.stage1.lr, large.stage1.student) == (1e-5, "vit_base_patch16_224.augreg_in1k")
