"""Few-shot recipes, and training in episodes: nothing novel in the base, nothing carried from one to the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from toys import tiny

import hpdval
from hpdval import tables
from hpdval.config import LossConfig
from hpdval.data import PROTOCOLS, Dataset, Episode, make_episodes, novel_test
from hpdval.errors import ConfigError, DataError, RunError
from hpdval.fewshot_recipes import FEWSHOT_PROTOCOLS, FEWSHOT_RECIPES, FewShot, get_fewshot
from hpdval.files import digest
from hpdval.metrics import evaluate
from hpdval.models import Clip
from hpdval.notebook_parameters import check_parameters, experiment_of, find_notebook
from hpdval.recipes import get_recipe
from hpdval.run import read_manifest, read_predictions
from hpdval.training import fewshot as module

# -- recipes -----------------------------------------------------------------------------------------------------------


def test_protocols_are_those_of_the_data() -> None:
    assert tuple(PROTOCOLS) == FEWSHOT_PROTOCOLS


@pytest.mark.parametrize("protocol", FEWSHOT_PROTOCOLS)
@pytest.mark.parametrize("name", FEWSHOT_RECIPES)
def test_every_recipe_fits_every_protocol_and_selects_nothing_on_test(name: str, protocol: str) -> None:
    recipe = get_fewshot(name, protocol=protocol)
    assert recipe.protocol == recipe.base.dataset == recipe.adapt.dataset == protocol
    assert {recipe.base.selection, recipe.adapt.selection} == {"last"}
    small = protocol == "scenes-fewshot" or name == "scenes-fewshot"
    assert recipe.base.clip == recipe.adapt.clip == ("scenes" if small else "ViT-B-16-quickgelu")


def test_the_released_recipe_is_what_is_known_of_the_released_code() -> None:
    recipe = get_fewshot("fewshot-released")
    base, novel = recipe.base.stage1, recipe.adapt.stage1
    assert (base.loss.name, base.lr, base.batch_size, base.epochs, base.ema_decay) == ("asl", 1e-5, 32, 19, 0.998)
    assert (novel.loss.name, novel.optimizer, novel.lr, novel.batch_size, novel.schedule) == (
        *("asl", "adamw", 1e-5, 64, "one-cycle"),
    )
    assert novel.augment.randaugment_ops > 0


def test_fields_are_overridden_on_one_side_or_on_both() -> None:
    recipe = get_fewshot(
        "fewshot", seed=3, shots=1, **{"adapt.stage2.lr": "0.01", "stage1.lr": 1e-4, "base.stage1.lr": 2e-4}
    )
    assert (recipe.base.seed, recipe.adapt.seed, recipe.shots) == (3, 3, 1)
    assert (recipe.base.stage1.lr, recipe.adapt.stage1.lr, recipe.adapt.stage2.lr) == (2e-4, 1e-4, 0.01)


def test_another_loss_begins_with_its_own_constants() -> None:
    recipe = get_fewshot("fewshot", **{"adapt.stage1.loss.name": "db_focal", "base.stage1.loss.gamma": 2.0})
    assert recipe.adapt.stage1.loss == LossConfig(name="db_focal")
    assert (recipe.base.stage1.loss.name, recipe.base.stage1.loss.gamma) == ("asl", 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapt.stage1.epoch": 3}, "there is no field 'adapt.stage1.epoch'; did you mean adapt.stage1.epochs"),
        ({"shots": 0}, "FewShot.shots is 0; it must be at least 1"),
        ({"episodes": 1001}, "FewShot.episodes is 1001"),
        ({"base.seed": 1}, "base.seed is 1 and adapt.seed 0; set seed, which sets both"),
        ({"base.clip": "ViT-B-32"}, "base.clip is 'ViT-B-32' and adapt.clip 'scenes'; set clip, which sets both"),
        ({"adapt.val": 0.2}, "adapt.val is 0.2; an episode has no image to spare"),
        ({"dataset": "voc2007"}, "base.dataset follows the protocol; set protocol=voc2007"),
        ({"adapt.stage2.lr": "fast"}, "adapt.stage2.lr is 'fast'; it must be float"),
        ({"selection": "test"}, "selection=test is only for recipes that state it"),
        ({"protocol": "voc2012"}, "there is no protocol 'voc2012'; choose one of scenes-fewshot, voc2007, coco2014"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_fewshot("scenes-fewshot", **given)
    assert message in str(caught.value)


def test_nothing_may_be_selected_on_test_images() -> None:
    recipe = get_fewshot("fewshot-released")
    with pytest.raises(ConfigError, match=r"adapt\.selection is 'test'; a few-shot result is not selected"):
        replace(recipe, adapt=replace(recipe.adapt, selection="test"))


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="no few-shot recipe 'fewshots'; recipes: scenes-fewshot, fewshot, fewshot-rel"
    ):
        get_fewshot("fewshots")


def test_the_notebooks_parameters_are_checked_before_a_kernel_starts() -> None:
    notebook = find_notebook("08")
    values = check_parameters(notebook, {"shots": "1", "adapt.stage2.lr": "1e-2", "seed": 2, "episode_seed": 4})
    assert values == {"shots": 1, "seed": 2, "overrides": "adapt.stage2.lr=1e-2 episode_seed=4"}
    assert experiment_of(notebook, values) is None
    for given, message in (
        ({"fewshot": "few"}, "no few-shot recipe 'few'"),
        ({"shots": 0}, "FewShot.shots is 0"),
        ({"adapt.stage2.lr": -1}, "TrainingConfig.lr|Stage2Config.lr is -1"),
        ({"adapt.stage3.lr": 1}, "no field 'adapt.stage3.lr'"),
        ({"overrides": "seed=1"}, "overrides names 'seed', which is a parameter"),
        ({"protocol": "voc"}, "no protocol 'voc'"),
        ({"shot": 1}, "no parameter 'shot'; did you mean shots"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_parameters(notebook, given)


# -- training ----------------------------------------------------------------------------------------------------------

NOVEL = PROTOCOLS["scenes-fewshot"].novel


@pytest.fixture(scope="module")
def world() -> Dataset:
    return PROTOCOLS["scenes-fewshot"].load(train=200, test=60)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return tiny(tmp_path_factory.mktemp("tiny"))


def recipe(**overrides: Any) -> FewShot:
    small = {"base.stage1.epochs": 1, "adapt.stage1.epochs": 2, "adapt.stage2.epochs": 2, "adapt.stage1.batch_size": 8}
    return get_fewshot("scenes-fewshot", **{"shots": 2, "episodes": 3, "stage1.lr": 1e-3, **small, **overrides})


@pytest.fixture(scope="module")
def episodes(world: Dataset) -> tuple[Episode, ...]:
    return make_episodes(world, NOVEL, shots=2, episodes=3)


@pytest.fixture(scope="module")
def folder(world: Dataset, clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it, trained once for this file."""
    path = tmp_path_factory.mktemp("fewshot")
    hpdval.train_fewshot(world, recipe(), run=path, clip=clip, show=False)
    return path


@pytest.fixture
def runs(world: Dataset, clip: Clip, folder: Path) -> dict[str, list[Path]]:
    """The runs of ``folder``: finished, so merely found again."""
    return hpdval.train_fewshot(world, recipe(), run=folder, clip=clip, show=False)


def inputs(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(folder)["inputs"]
    return found


def test_every_method_has_its_runs_on_the_same_novel_images(world: Dataset, runs: dict[str, list[Path]]) -> None:
    assert {method: len(made) for method, made in runs.items()} == {
        "zero-shot": 1, "base model": 1,
        "base model, both views": 1, "stage 1": 3, "stage 2": 3,
    }  # fmt: skip
    expected = novel_test(world, NOVEL)
    for made in runs.values():
        for one in made:
            found = read_predictions(one)
            assert found["ids"].tolist() == list(expected.ids)
            assert set(found["classes"]) == set(NOVEL)
            assert np.array_equal(found["targets"], expected.targets)
    assert runs["stage 2"][1].relative_to(runs["stage 2"][1].parents[2]) == Path("2shot/episode-02/stage2")


def test_no_novel_label_reaches_base_training(world: Dataset, folder: Path) -> None:
    about = inputs(folder / "base/stage1")
    own = [i for i, name in enumerate(world.classes) if name not in NOVEL]
    rows = [i for i, row in enumerate(world.train.targets) if any(row[c] for c in own)]
    ids = tuple(world.train.ids[i] for i in rows)
    labels = [[int(world.train.targets[i, c]) for c in own] for i in rows]
    assert about["classes"] == [world.classes[c] for c in own]
    assert about["labels"]["train"] == digest(ids, labels), (
        "exactly the images with a base label, with base labels alone"
    )
    assert not set(ids) & set(world.test.ids)


def test_support_and_test_share_no_image(
    world: Dataset, runs: dict[str, list[Path]], episodes: tuple[Episode, ...]
) -> None:
    for episode, one in zip(episodes, runs["stage 1"], strict=True):
        assert inputs(one)["labels"]["train"] == digest(episode.ids, episode.targets.tolist())
        assert not set(episode.ids) & set(read_predictions(one)["ids"])
    seen = world.train.subset(episodes[0].indices)
    leaking = replace(world, test=seen)
    with pytest.raises(DataError):
        hpdval.train_fewshot(leaking, recipe(), run="never-made", episodes=episodes, show=False)
    assert not Path("never-made").exists()


def test_an_episode_gives_the_same_bits_after_another_and_alone(
    world: Dataset, clip: Clip, runs: dict[str, list[Path]], episodes: tuple[Episode, ...], tmp_path: Path
) -> None:
    alone = hpdval.train_fewshot(world, recipe(), run=tmp_path, episodes=[episodes[1]], clip=clip, show=False)
    for method in ("stage 1", "stage 2"):
        [here], there = alone[method], runs[method][1]
        for name in ("clip.safetensors", "model.safetensors"):
            one, other = load_file(here / name), load_file(there / name)
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[key], other[key]) for key in one), (method, name)
        scores = [read_predictions(path)["scores"] for path in (here, there, runs[method][0])]
        assert np.array_equal(scores[0], scores[1])
        assert not np.array_equal(scores[0], scores[2]), "another episode gives another result"


def test_all_episodes_start_from_the_saved_base_model(runs: dict[str, list[Path]], folder: Path) -> None:
    started = {inputs(one)["weights"] for one in runs["stage 1"]}
    assert len(started) == 1
    assert started != {inputs(folder / "base/stage1")["weights"]}, "base training changed the weights"
    assert started.isdisjoint(inputs(one)["weights"] for one in runs["stage 2"]), "stage 2 starts from stage 1"


def test_baselines_are_clip_and_the_base_model_with_hand_crafted_prompts(
    world: Dataset, clip: Clip, runs: dict[str, list[Path]], folder: Path
) -> None:
    test, classes = novel_test(world, NOVEL), [name for name in world.classes if name in NOVEL]
    models = {"zero-shot": clip, "base model": hpdval.load_run(folder / "base/stage1", device="cpu").clip}
    for label, model in models.items():
        expected = hpdval.zero_shot(model, test, classes, resize="squash", show=False)
        assert np.allclose(read_predictions(runs[label][0])["scores"], expected, atol=1e-6), label
    own = recipe().adapt.score
    both = hpdval.zero_shot(models["base model"], test, classes, alpha=own.alpha, k=own.k, resize="squash", show=False)
    assert np.allclose(read_predictions(runs["base model, both views"][0])["scores"], both, atol=1e-6)
    scores = {path: read_predictions(path)["scores"] for path in folder.glob("2shot/*/zero-shot")}
    assert len(scores) == 3
    first, *others = scores.values()
    assert all(np.array_equal(first, other) for other in others), "the base model does not depend on the episode"


def test_unadapted_models_share_the_base_models_file(folder: Path) -> None:
    weights = folder / "base/stage1/clip.safetensors"
    for path in folder.glob("2shot/*/zero-shot"):
        assert (path / "clip.safetensors").samefile(weights)
        hpdval.load_run(path, device="cpu")  # and is still what its manifest says


def test_what_is_finished_is_skipped(world: Dataset, clip: Clip, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    assert len(before) == 4 + 3 * 3
    hpdval.train_fewshot(world, recipe(), run=folder, clip=clip, show=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")} == before


def test_what_was_interrupted_continues_to_the_same_result(
    world: Dataset, clip: Clip, runs: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stops(*args: Any, **options: Any) -> Any:
        calls.append(options["run"])
        if len(calls) == 3:  # base, the first episode, and no more
            raise RuntimeError("power cut")
        return hpdval.train(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, "train", stops)
        with pytest.raises(RuntimeError, match="power cut"):
            hpdval.train_fewshot(world, recipe(), run=tmp_path, clip=clip, show=False)
    again = hpdval.train_fewshot(world, recipe(), run=tmp_path, clip=clip, show=False)
    for one, other in zip(again["stage 2"], runs["stage 2"], strict=True):
        assert np.array_equal(read_predictions(one)["scores"], read_predictions(other)["scores"])


def test_more_episodes_are_added_to_those_there_are(world: Dataset, clip: Clip, folder: Path, tmp_path: Path) -> None:
    few = hpdval.train_fewshot(world, recipe(episodes=1), run=tmp_path, clip=clip, show=False)
    stamp = few["stage 2"][0].joinpath("manifest.json").stat().st_mtime_ns
    more = hpdval.train_fewshot(world, recipe(episodes=2), run=tmp_path, clip=clip, show=False)
    assert len(more["stage 2"]) == 2
    assert more["stage 2"][0].joinpath("manifest.json").stat().st_mtime_ns == stamp


def test_a_base_stage_that_leaves_the_encoder_alone_is_clip(world: Dataset, clip: Clip, tmp_path: Path) -> None:
    prompts = recipe(episodes=1, **{"base.stages": "stage2", "adapt.stages": "stage2", "stage2.epochs": 1})
    found = hpdval.train_fewshot(world, prompts, run=tmp_path, clip=clip, show=False)
    assert list(found) == ["zero-shot", "base model", "base model, both views", "stage 2"]
    zero, base = (read_predictions(found[method][0])["scores"] for method in ("zero-shot", "base model"))
    assert np.array_equal(zero, base)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapt.stage2.init": "a photo of"}, "a photo of"),
        ({"adapt.stage2.contexts": 3}, "a photo of a"),
        ({"adapt.stage2.loss.focal": "element", "adapt.stage2.loss.name": "bce"}, "focal"),
    ],
)
def test_what_no_episode_could_train_is_refused_before_the_base(
    world: Dataset, clip: Clip, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        hpdval.train_fewshot(world, recipe(**given), run=tmp_path / "no", clip=clip, show=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "no").exists()


def with_rival(name: str, *, side: str = "adapt", **overrides: Any) -> FewShot:
    """A rival in the place of the stages of one side, its training as small as theirs."""
    few = recipe(episodes=2)
    rival = get_recipe(name, **overrides)
    return replace(few, **{side: replace(rival, dataset=few.protocol, name=f"{few.name} {name}")})


def test_a_rival_adapts_in_every_episode(
    world: Dataset, clip: Clip, episodes: tuple[Episode, ...], tmp_path: Path
) -> None:
    tiny = {"rival.epochs": 2, "rival.batch_size": 4, "rival.lr": 1e-2, "rival.init": "normal", "rival.contexts": 2}
    few = with_rival("coop-small", **tiny)
    found = hpdval.train_fewshot(world, few, run=tmp_path, episodes=episodes[:2], clip=clip, show=False)
    assert {method: len(made) for method, made in found.items()} == {"zero-shot": 1, "base model": 1, "CoOp": 2}
    base = hpdval.load_run(tmp_path / "base/stage1", device="cpu")
    for episode, one in zip(episodes, found["CoOp"], strict=False):
        assert one == tmp_path / f"2shot/episode-0{episode.number}/coop"
        assert inputs(one)["labels"]["train"] == digest(episode.ids, episode.targets.tolist())
        assert inputs(one)["weights"] == base.encoder.fingerprint, "each from the base model"
        scorer = hpdval.load_run(one, device="cpu")
        assert (scorer.method, scorer.encoder.fingerprint) == ("CoOp", base.encoder.fingerprint)
    scores = [read_predictions(one)["scores"] for one in (*found["CoOp"], found["base model"][0])]
    assert min(np.abs(scores[0] - other).max() for other in scores[1:]) > 1e-4, "each learns from its own images"
    table = tables.fewshot_table(tables.read_fewshot(found, protocol="scenes-fewshot", shots=2))
    assert table["method"].tolist()[-1] == "CoOp"


def test_a_base_without_texts_is_refused(world: Dataset, clip: Clip, tmp_path: Path) -> None:
    few = with_rival("fine-tuning-small", side="base", **{"rival.backbone": "test_resnet", "rival.image_size": 32})
    with pytest.raises(ConfigError, match="a base model with a CNN has no texts for novel classes"):
        hpdval.train_fewshot(world, few, run=tmp_path / "no", clip=clip, show=False)
    assert not (tmp_path / "no").exists()


def test_episodes_of_something_else_are_refused(
    world: Dataset, clip: Clip, episodes: tuple[Episode, ...], tmp_path: Path
) -> None:
    def attempt(message: str, data: Dataset = world, few: FewShot | None = None, **options: Any) -> None:
        with pytest.raises((ConfigError, RunError), match=message):
            hpdval.train_fewshot(data, few or recipe(), run=tmp_path / "no", clip=clip, show=False, **options)
        assert not (tmp_path / "no").exists()

    attempt("the data set is other, the protocol scenes-fewshot; load that", data=replace(world, name="other"))
    attempt("has 2 shots of .*; the recipe wants 1", few=recipe(shots=1), episodes=episodes)
    attempt("the recipe wants 2 of mushroom", episodes=make_episodes(world, ["cat", "bus"], shots=2, episodes=1))
    attempt(r"episodes have the numbers \[1, 1\]", episodes=[episodes[0], episodes[0]])
    attempt("there is no episode", episodes=[])


def test_tables_read_what_training_returns(runs: dict[str, list[Path]]) -> None:
    found = tables.read_fewshot(runs, protocol="scenes-fewshot", shots=2)
    table = tables.fewshot_table(found).set_index("method")
    scores = [read_predictions(one) for one in runs["stage 2"]]
    maps = [evaluate(one["scores"], one["targets"], [2] * 6).total for one in scores]
    assert table.loc["stage 2", "mAP"] == pytest.approx(np.mean(maps))
    assert table["episodes"].dropna().tolist() == [1, 1, 1, 3, 3]
    assert set(found.selections.values()) == {"nothing selected"}
