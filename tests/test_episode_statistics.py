"""Means over episodes and their tables and figure, against scipy, scikit-learn and slow loops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from hpdval import plots, tables
from hpdval.data import balanced_rows
from hpdval.errors import ConfigError, RunError
from hpdval.metrics import episode_mean, paired_bootstrap, paired_episodes
from hpdval.run import Run
from hpdval.tables import FewShotResults

# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("episodes", [2, 3, 10])
def test_the_interval_is_students(episodes: int, level: float) -> None:
    values = np.random.default_rng(episodes).normal(60, 3, episodes)
    found = episode_mean(values, level=level)
    expected = stats.t.interval(level, episodes - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert found.mean == pytest.approx(sum(values) / episodes)
    assert found.sd == pytest.approx(math.sqrt(sum((v - values.mean()) ** 2 for v in values) / (episodes - 1)))


def test_the_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [episode_mean(rng.normal(50, 4, 5)) for _ in range(2000)]
    assert np.mean([one.low <= 50 <= one.high for one in found]) == pytest.approx(0.95, abs=0.015)


def test_one_episode_has_a_mean_and_no_interval() -> None:
    found = episode_mean([61.0])
    assert found.mean == 61.0
    assert all(math.isnan(value) for value in (found.low, found.high, found.sd))


def test_paired_differences_are_those_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 5, 10)
    a, b = 62 + luck + rng.normal(0, 1, 10), 60 + luck + rng.normal(0, 1, 10)
    found, oracle = paired_episodes(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.in_favour == sum(x > y for x, y in zip(a, b, strict=True))
    unpaired = episode_mean(a)
    assert found.high - found.low < 0.5 * (unpaired.high - unpaired.low), "the shared luck cancels"


def test_a_method_that_was_not_adapted_is_compared_with_every_episode() -> None:
    assert paired_episodes([60.0, 62.0], [59.0]).values == (1.0, 3.0)
    assert paired_episodes(59.0, [60.0, 62.0]).values == (-1.0, -3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: episode_mean([]), "one finite number for each episode"),
        (lambda: episode_mean([1.0, math.nan]), "one finite number for each episode"),
        (lambda: episode_mean([[1.0]]), "one finite number for each episode"),
        (lambda: episode_mean([1.0, 2.0], level=1.0), "level must be between 0 and 1"),
        (lambda: paired_episodes([1.0, 2.0], [1.0, 2.0, 3.0]), "cannot pair 2 episodes of a with 3 of b"),
    ],
)
def test_what_is_no_sample_of_episodes_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


# -- tables ------------------------------------------------------------------------------------------------------------


def results(episodes: int = 4, *, balanced: bool = False, name: str = "voc-fewshot-5", **rules: str) -> FewShotResults:
    """Results of an unadapted and two adapted methods on 60 images of 3 classes, of different frequency."""
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 3)) < [0.2, 0.3, 0.6]).astype(np.uint8)
    targets[~targets.any(1), 0] = 1

    def scores(strength: float, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=targets.shape)
        return np.asarray(strength * targets + noise, np.float32)

    made = {
        "zero-shot": (scores(0.5, 0),),
        "stage 1": tuple(scores(1.0, 10 + e) for e in range(episodes)),
        "stage 2": tuple(scores(2.0, 10 + e) for e in range(episodes)),
    }
    return FewShotResults(
        name=name,
        targets=targets,
        scores=made,
        readout="raw",
        selections={"zero-shot": "nothing selected", "stage 1": "nothing selected", "stage 2": "nothing selected"}
        | rules,
        models=dict.fromkeys(made, "ViT-B-16-quickgelu, openai"),
        balanced=balanced_rows(targets, 200, seed=0) if balanced else None,
    )


def slow_map(scores: np.ndarray, targets: np.ndarray) -> float:
    return 100 * float(np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(targets.shape[1])]))


def test_the_table_holds_means_over_episodes_that_a_loop_finds() -> None:
    found = results(balanced=True)
    table = tables.fewshot_table(found).set_index(["test set", "method"])
    for test, rows in (("natural", np.arange(60)), ("balanced", found.balanced)):
        for label, scores in found.scores.items():
            maps = [slow_map(s[rows], found.targets[rows]) for s in scores]
            row = table.loc[(test, label)]
            assert row["mAP"] == pytest.approx(np.mean(maps), abs=1e-6)
            assert row["episodes"] == len(maps)
            if len(maps) > 1:
                assert row["sd"] == pytest.approx(np.std(maps, ddof=1), abs=1e-6)
                assert row["high"] - row["mAP"] == pytest.approx(stats.t.ppf(0.975, 3) * stats.sem(maps), abs=1e-5)
            else:
                assert pd.isna(row["sd"])
        assert table.loc[(test, "chance"), "mAP"] == pytest.approx(100 * found.targets[rows].mean())
    assert table.loc[("balanced", "zero-shot"), "mAP"] != table.loc[("natural", "zero-shot"), "mAP"]


def test_without_a_balanced_set_no_column_names_one() -> None:
    table = tables.fewshot_table(results())
    assert table.columns.tolist() == ["method", "mAP", "low", "high", "sd", "episodes"]
    with pytest.raises(ConfigError, match="no test set 'balanced' here; there are natural"):
        results().episode_maps("stage 1", "balanced")
    with pytest.raises(ConfigError, match="no method 'stage 3'; there are zero-shot, stage 1, stage 2"):
        results().episode_maps("stage 3")


def test_per_episode_values_stand_in_their_episode() -> None:
    found = results(balanced=True)
    table = tables.episode_table(found)
    assert table["test set"].tolist() == ["natural"] * 4 + ["balanced"] * 4
    third = table[(table["test set"] == "natural") & (table["episode"] == 3)].iloc[0]
    assert third["stage 2"] == pytest.approx(slow_map(found.scores["stage 2"][2], found.targets), abs=1e-6)
    assert third["zero-shot"] == pytest.approx(slow_map(found.scores["zero-shot"][0], found.targets), abs=1e-6)


def test_differences_have_an_interval_over_episodes_and_one_over_images() -> None:
    found = results(balanced=True)
    table = tables.episode_differences(found, [("stage 2", "stage 1"), ("stage 1", "zero-shot")], resamples=100)
    first = table.iloc[0]
    a, b = ([slow_map(s, found.targets) for s in found.scores[m]] for m in ("stage 2", "stage 1"))
    oracle = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (first["low"], first["high"]) == pytest.approx((oracle.low, oracle.high), abs=1e-5)
    assert first["difference"] == pytest.approx(np.mean(a) - np.mean(b), abs=1e-6)
    assert first["in favour"] == f"{sum(x > y for x, y in zip(a, b, strict=True))} of 4"
    scores = [list(found.scores[m]) for m in ("stage 2", "stage 1")]
    images = paired_bootstrap(*scores, found.targets, [0, 0, 0], resamples=100)["total"]
    assert (first["images low"], first["images high"]) == pytest.approx((images.low, images.high))
    balanced = table[table["test set"] == "balanced"]
    assert balanced["images low"].isna().all(), "repeated images are no sample of images"
    assert balanced["low"].notna().all()


def test_by_default_adapted_methods_meet_every_baseline_and_each_other() -> None:
    found = results()
    scores = {"zero-shot": found.scores["zero-shot"], "base model": found.scores["zero-shot"], **found.scores}
    table = tables.episode_differences(replace(found, scores=scores), resamples=10)
    assert table["comparison"].tolist() == [
        *("stage 1 - base model", "stage 1 - zero-shot", "stage 2 - base model", "stage 2 - zero-shot"),
        *("base model - zero-shot", "stage 2 - stage 1"),
    ]


def test_published_rows_stand_beside_ours_with_their_protocol() -> None:
    table = tables.fewshot_protocol_table(results(10), tables.published_results("voc-fewshot-5"))
    assert table.columns.tolist() == ["method", "model", "total", "episodes", "protocol", "source"]
    rows = table.set_index("method")
    ours, theirs = rows.loc["ours: stage 1"], rows.loc["HP-DVAL"]
    assert "[" not in ours["total"]
    assert ours["protocol"] == "read-out raw, nothing selected, mean of 10 episodes"
    assert theirs["total"].startswith("95.40 [")
    assert "selected on the test images, mean of 10 episodes" in theirs["protocol"]
    notes = table.attrs["footnotes"]
    assert any("sample standard deviation over episodes" in note for note in notes)
    assert any("selected on the test images" in note for note in notes)
    assert "one test" in next(note for note in notes if "one test" in note), "zero-shot is no mean over episodes"


def test_another_test_set_is_refused_or_marked() -> None:
    other = results(name="scenes-fewshot-5")
    with pytest.raises(ConfigError, match="give context=True"):
        tables.fewshot_protocol_table(other, tables.published_results("voc-fewshot-5"))
    table = tables.fewshot_protocol_table(other, tables.published_results("voc-fewshot-5"), context=True)
    assert any("for orientation only" in note for note in table.attrs["footnotes"])


def test_the_balanced_set_names_itself() -> None:
    table = tables.fewshot_protocol_table(results(balanced=True), test="balanced")
    assert table["method"].tolist()[0] == "ours: stage 1, balanced test set"
    assert "200 images" in table.attrs["footnotes"][0]


# -- reading runs ------------------------------------------------------------------------------------------------------


def finished(folder: Path, *, selection: str = "none (last epoch)", shift: int = 0) -> Path:
    """A finished run with four predictions."""
    targets = np.roll(np.array([[1, 0], [0, 1], [1, 1], [0, 1]], np.uint8), shift, axis=0)
    scores = np.random.default_rng(0).random((4, 2)).astype(np.float32)
    run = Run(folder, kind="stage1", config={"clip": "scenes", "stage1": {}}, inputs={"n": str(folder)})
    run.save_predictions(["a", "b", "c", "d"], scores, targets, ["x", "y"])
    run.finish({"readout": "raw", "selection": selection})
    return folder


def test_runs_are_read_with_their_selection_and_model(tmp_path: Path) -> None:
    runs = {"stage 1": [finished(tmp_path / str(e)) for e in range(3)]}
    found = tables.read_fewshot(runs, protocol="coco2014", shots=1)
    assert (found.name, found.readout, len(found.scores["stage 1"])) == ("coco-fewshot-1", "raw", 3)
    assert found.selections == {"stage 1": "nothing selected"}
    assert found.models == {"stage 1": "scenes"}
    assert tables.read_fewshot(runs, protocol="scenes-fewshot", shots=5).name == "scenes-fewshot-5"


def test_runs_on_other_images_or_rules_are_refused(tmp_path: Path) -> None:
    one = finished(tmp_path / "one")
    with pytest.raises(RunError, match="differ in targets; give runs of the same test images"):
        tables.read_fewshot({"a": [one], "b": [finished(tmp_path / "other", shift=1)]}, protocol="voc2007", shots=1)
    chosen = finished(tmp_path / "chosen", selection="best epoch on TEST images")
    with pytest.raises(RunError, match="a: the episodes differ in how epochs were selected"):
        tables.read_fewshot({"a": [one, chosen]}, protocol="voc2007", shots=1)
    with pytest.raises(RunError, match="no run was given"):
        tables.read_fewshot({}, protocol="voc2007", shots=1)


# -- figure ------------------------------------------------------------------------------------------------------------


def test_the_figure_has_a_dot_for_every_episode_and_the_mean() -> None:
    values = {"zero-shot": [50.0], "stage 1": [60.0, 62.0, 64.0], "stage 2": [61.0, 62.5, 66.0]}
    figure = plots.episode_dots(values, chance=20.0, title="Few")
    axes = figure.axes[0]
    drawn = [np.asarray(c.get_offsets())[:, 0].tolist() for c in axes.collections if hasattr(c, "get_offsets")]
    assert [dots for dots in drawn if len(dots) == 3] == [values["stage 1"], values["stage 2"]]
    assert [50.0] in drawn
    joined = [line for line in axes.lines if sorted(line.get_xdata()) in ([60.0, 61.0], [62.0, 62.5], [64.0, 66.0])]
    assert len(joined) == 3, "each episode is followed from stage 1 to stage 2"
    assert {text.get_text() for text in axes.texts} == {"50.0", "62.0", "63.2"}
    assert axes.get_xlabel().endswith("percent (chance: 20.0)")
    assert axes.get_title(loc="left") == "Few"
    assert plots.figure_bytes(figure, "png").startswith(b"\x89PNG")


def test_the_figure_shows_a_single_episode_without_an_interval() -> None:
    figure = plots.episode_dots({"zero-shot": [50.0], "stage 1": [60.0]})
    assert len(figure.axes[0].get_yticklabels()) == 2


def test_tables_are_written_as_csv_and_markdown(tmp_path: Path) -> None:
    tables.save_table(tables.fewshot_table(results()), tmp_path, "fewshot")
    back = pd.read_csv(tmp_path / "tables/fewshot.csv")
    assert back["method"].tolist() == ["chance", "zero-shot", "stage 1", "stage 2"]
    assert "95 % interval of the mean over episodes" in (tmp_path / "tables/fewshot.md").read_text()
