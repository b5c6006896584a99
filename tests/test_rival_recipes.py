"""Recipes and configs of rivals: what is refused, what belongs to a data set, and the sweep that compares them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpdval.config import METHODS, Experiment, LossConfig, Stage1Config, Stage2Config
from hpdval.errors import ConfigError
from hpdval.overrides import override
from hpdval.recipes import for_dataset, get_recipe
from hpdval.rival_configs import CoopConfig, CprflConfig, FineTuneConfig
from hpdval.rival_recipes import RIVAL_RECIPES
from hpdval.sweep.grid import read_grid
from hpdval.sweep.plan import make_plan

LABELS = {
    "prompt-ensemble": "prompt ensemble",
    "knn": "kNN",
    "linear-probe": "linear probe",
    "mlp-probe": "MLP probe",
    "coop": "CoOp",
    "coop-classes": "CoOp, class-specific",
    "cocoop": "CoCoOp",
    "lmpt": "LMPT",
    "dualcoop": "DualCoOp",
    "fine-tuning": "fine-tuning",
    "lora": "LoRA",
    "cprfl": "CPRFL",
}


def refused(words: str, name: str, **overrides: Any) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        get_recipe(name, **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(RIVAL_RECIPES))
def test_each_rival_has_a_recipe_for_the_small_world(name: str) -> None:
    published, small = get_recipe(name), get_recipe(f"{name}-small")
    assert (published.name, small.name) == (name, f"{name}-small")
    assert (published.stages, published.methods) == ("rival", (LABELS[name],))
    assert small.methods == published.methods
    assert type(small.rival) is type(published.rival)
    assert (small.clip, small.pretrained, small.dataset) == ("scenes", None, "scenes-lt")
    assert get_recipe(name, dataset="scenes-lt") == replace(small, name=name)
    assert get_recipe(f"{name}-small", dataset="scenes-lt") == small
    assert published.rival is not None
    assert published.rival.kind not in (*METHODS, "zero-shot", "scenes"), "its run lies beside those of the stages"


def test_kinds_and_labels_are_apart() -> None:
    assert set(LABELS) == set(RIVAL_RECIPES)
    assert len(set(LABELS.values())) == len(LABELS)
    label = get_recipe("fine-tuning", **{"rival.sampling": "class-aware"}).methods
    assert label == ("fine-tuning, class-aware",)
    assert get_recipe("lmpt", **{"rival.form": "released"}).methods == ("LMPT, released sign",)


def test_a_rival_and_its_stage_belong_together() -> None:
    refused("stages='sequence' in an experiment with the rival 'CoOp'", "coop", stages="sequence")
    refused("stages='rival' in an experiment with no rival; choose the recipe of a rival", "scenes", stages="rival")
    with pytest.raises(ConfigError, match="with the rival 'CoOp'"):
        Experiment(name="x", rival=CoopConfig())


def test_fields_of_a_rival_are_overridden_by_name() -> None:
    changed = get_recipe("coop", **{"rival.lr": "0.25", "rival.per_class": "true", "rival.init": "a photo of a"}).rival
    assert changed == replace(get_recipe("coop").rival, lr=0.25, per_class=True, init="a photo of a")  # type: ignore[type-var]
    refused(r"there is no field 'rival\.bogus'; did you mean .*rival\.", "coop", **{"rival.bogus": 1})
    refused(r"there is no field 'rival\.mix'", "coop", **{"rival.mix": 0.5})
    refused("it is a group of rival.precision, ", "coop", rival="lmpt")
    refused("LmptConfig.mix is 1.5; it must be at least 0 and at most 1", "lmpt", **{"rival.mix": 1.5})
    refused("LmptConfig.margin is 0.0; it must be more than 0", "lmpt", **{"rival.margin": 0.0})
    refused("FineTuneConfig.head is 'texts'; choose one of 'linear', 'text'", "lora", **{"rival.head": "texts"})


def test_what_does_not_go_with_a_backbone_is_refused() -> None:
    refused("a backbone has neither LoRA nor texts", "lora", **{"rival.backbone": "resnet18"})
    refused("a backbone has neither LoRA nor texts", "fine-tuning", **{"rival.backbone": "resnet18", "rival.rank": 2})
    refused("weights is 'timm', but there is no backbone", "fine-tuning", **{"rival.weights": "timm"})
    refused("weights is 'timm', but there is no backbone", "cprfl", **{"rival.backbone": None})
    own = {"rival.backbone": "resnet50.tv_in1k", "rival.weights": "timm", "rival.image_size": 224}
    assert override(get_recipe("fine-tuning"), own).rival == replace(
        get_recipe("fine-tuning").rival,  # type: ignore[type-var]
        backbone="resnet50.tv_in1k",
        weights="timm",
        image_size=224,
    )


def test_two_experiments_share_a_rivals_run_whatever_their_stages_are() -> None:
    one = get_recipe("knn")
    other = replace(one, stage1=Stage1Config(lr=1e-2), stage2=Stage2Config(lr=1e-2), eval_alpha=0.9)
    assert one != other
    assert one.relevant_to("neighbours") == other.relevant_to("neighbours")
    assert one.relevant_to("neighbours").rival == one.rival
    assert one.relevant_to("neighbours") != get_recipe("knn", **{"rival.k": 3}).relevant_to("neighbours")
    assert one.relevant_to("neighbours") != get_recipe("knn", readout="l2").relevant_to("neighbours")
    zero = one.relevant_to("zero-shot")
    assert zero.rival is None
    assert replace(zero, name="") == replace(get_recipe("cprfl").relevant_to("zero-shot"), name="")
    assert one.settings("neighbours") is one.rival
    assert one.settings("zero-shot") is one.stage1


def test_constants_of_a_data_set_reach_a_rivals_loss_where_it_has_them() -> None:
    lmpt, coop = (get_recipe(name, dataset="coco-lt").rival for name in ("lmpt", "coop"))
    assert isinstance(lmpt, CoopConfig)
    assert isinstance(coop, CoopConfig)
    assert (lmpt.loss.name, lmpt.loss.mu, lmpt.loss.lam) == ("db_focal", 0.2, 2.0)
    assert coop.loss == LossConfig(name="asl")
    assert get_recipe("knn", dataset="coco-lt").rival == get_recipe("knn").rival, "which has no loss"


def test_cprfl_has_the_rate_of_each_data_set() -> None:
    def rate(dataset: str, name: str = "cprfl", **overrides: Any) -> float:
        rival = get_recipe(name, dataset=dataset, **overrides).rival
        assert isinstance(rival, CprflConfig | FineTuneConfig)
        return rival.lr

    assert (rate("voc-lt"), rate("coco-lt"), rate("lists/coco_lt_train.txt")) == (5e-5, 1e-5, 1e-5)
    assert rate("coco-lt", **{"rival.lr": 3e-4}) == 3e-4
    assert rate("coco-lt", "fine-tuning") == rate("voc-lt", "fine-tuning")
    assert rate("coco-lt", "cprfl-small") == rate("scenes-lt", "cprfl-small"), "which has another encoder"


@pytest.mark.parametrize("name", list(RIVAL_RECIPES))
def test_what_was_changed_stays_on_the_small_world(name: str) -> None:
    changed = replace(get_recipe(name), seed=3, val=0.2, selection="validation", readout="l2", name="mine")
    small = get_recipe(f"{name}-small")
    kept = {"seed": 3, "val": 0.2, "selection": "validation", "readout": "l2", "name": "mine"}
    assert for_dataset(changed, "scenes-lt") == replace(small, **kept)  # type: ignore[arg-type]
    assert for_dataset(for_dataset(changed, "scenes-lt"), "scenes-lt") == replace(small, **kept)  # type: ignore[arg-type]


def test_what_rivals_cannot_do_is_refused() -> None:
    refused(
        "normalise=false belongs to HP-DVAL's stages; a rival's images are always normalised", "coop", normalise=False
    )
    refused("a backbone has batch normalisation, which needs float32", "cprfl", **{"rival.precision": "pure-bfloat16"})
    on_clip = {"rival.backbone": None, "rival.weights": None, "rival.precision": "pure-bfloat16"}
    assert get_recipe("cprfl", **on_clip).rival.precision == "pure-bfloat16"  # type: ignore[union-attr]


def test_another_loss_begins_with_its_own_constants() -> None:
    def loss(name: str, recipe: str = "fine-tuning", dataset: str = "coco-lt", **more: Any) -> LossConfig:
        rival = get_recipe(recipe, dataset=dataset, **{"rival.loss.name": name, **more}).rival
        assert isinstance(rival, (FineTuneConfig, CoopConfig))
        return rival.loss

    assert loss("db") == LossConfig(name="db", mu=0.2, lam=2.0)
    assert loss("db", dataset="voc-lt") == LossConfig(name="db", mu=0.3, lam=5.0)
    assert loss("bce", "lmpt") == LossConfig(name="bce"), "not with those of DB"
    assert loss("db_star", "lmpt", **{"rival.loss.lam": 3.0}) == LossConfig(name="db_star", mu=0.2, lam=3.0)


def test_the_sweep_of_rivals() -> None:
    plan = make_plan("05", read_grid("rivals"), seeds=1)
    assert len(plan.jobs) == 43
    comparisons = {comparison["name"]: comparison for comparison in plan.comparisons}
    cells = {name: {cell["label"]: cell for cell in known["cells"]} for name, known in comparisons.items()}
    ours = ["HP-DVAL, stage 1", "HP-DVAL"]
    classes = [*LABELS.values(), "fine-tuning, class-aware", *ours, "zero-shot"]
    assert sorted(cells["rivals"]) == sorted(classes)
    assert comparisons["rivals"]["reference"] == "HP-DVAL"
    assert len(cells["losses"]) == 10
    assert set(cells["sampling"]) == {"uniform", "class-aware", "uniform, DB focal", "class-aware, DB focal"}
    assert set(cells["rarity"]) == {"shared", "class-specific", "shrunk, m = 20", "shrunk, m = 100"}

    def job(comparison: str, label: str) -> str:
        return cells[comparison][label]["runs"]["0"]

    assert cells["rivals"]["HP-DVAL, stage 1"]["method"] == "stage 1"
    whole = job("rivals", "HP-DVAL")
    assert job("rivals", "HP-DVAL, stage 1") == job("rivals", "zero-shot") == job("rarity", "shared") == whole
    others = [job("rarity", label) for label in cells["rarity"] if label != "shared"]
    assert len({*others, whole}) == 4
    assert plan.jobs[whole].needs is None
    assert [plan.jobs[name].needs for name in others] == [whole] * 3, "one stage 1 for all"
    assert all(plan.jobs[job("rarity-alone", label)].needs is None for label in cells["rarity-alone"])
    assert all(plan.jobs[job("rivals", label)].needs is None for label in LABELS.values())
    assert job("losses", "bce") == job("sampling", "uniform")
    assert job("losses", "db_focal") == job("sampling", "uniform, DB focal")
    assert job("lmpt", "corrected") == job("rivals", "LMPT")
    assert job("classifiers", "kNN") == job("rivals", "kNN")
