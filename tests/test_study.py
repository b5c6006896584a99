"""A study runs each notebook as often as it must, and its report holds the numbers of the runs it is made from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from hpdval import cli
from hpdval import study as module
from hpdval.errors import ConfigError
from hpdval.metrics import evaluate
from hpdval.run import Run
from hpdval.study import demo, study

CLASSES, COUNTS = ("dog", "bus", "cup"), np.array([300, 40, 5])
TARGETS = (np.random.default_rng(0).random((60, 3)) < 0.4).astype(np.uint8)
STRENGTH = {"02": 0.0, "03": 1.0, "04": 3.0}


def scores(number: str, seed: int) -> np.ndarray:
    """What the notebook ``number`` would predict: later ones know the targets better."""
    noise = np.random.default_rng([int(number), seed]).normal(size=TARGETS.shape)
    return (STRENGTH[number] * TARGETS + noise).astype(np.float32)


def mean_ap(number: str, seed: int, classes: list[int]) -> float:
    values = scores(number, seed)
    return 100 * float(np.mean([average_precision_score(TARGETS[:, c], values[:, c]) for c in classes]))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any], Path]]:
    """Notebooks that do not compute but leave finished runs; what was started, in order."""
    calls: list[tuple[str, dict[str, Any], Path]] = []

    def run_notebook(notebook: Path, parameters: Mapping[str, Any], folder: Path, **options: Any) -> Path:
        number, seed = notebook.stem[:2], int(parameters.get("seed", 0))
        calls.append((number, dict(parameters), folder))
        inputs = {"dataset": "toys", "images": {"train": 345, "val": 0, "test": len(TARGETS)}}
        with Run(folder, kind=number, config={"seed": seed}, inputs=inputs) as run:
            if number == "01":
                run.finish({})
                return folder
            run.save_predictions([f"{i}.jpg" for i in range(60)], scores(number, seed), TARGETS, CLASSES)
            result = evaluate(scores(number, seed), TARGETS, COUNTS, classes=CLASSES, selection="last epoch")
            run.finish({"notes": ["drawn by a test"], "class_counts": COUNTS.tolist(), **result.as_dict()})
        return folder

    monkeypatch.setattr(module, "run_notebook", run_notebook)
    return calls


def test_seeds_share_what_does_not_depend_on_them(tmp_path: Path, started: list[Any]) -> None:
    study({"stage1.lr": "1e-4", "device": "cpu"}, seeds=2, out=tmp_path)
    assert [number for number, _, _ in started] == ["01", "02", "03", "04", "03", "04"]
    _, parameters, folder = started[-1]
    assert folder == tmp_path / "seed-1/04_stage2_hierarchical_prompts"
    assert parameters == {
        "seed": 1,
        "device": "cpu",
        "stage1.lr": "1e-4",
        "stage1_run": str(tmp_path / "seed-1/03_stage1_dual_view_alignment"),
    }
    assert started[2][1]["baseline_run"] == str(tmp_path / "02_zero_shot_baseline")
    assert "device" not in started[0][1]  # notebook 01 has none


def test_the_report_agrees_with_scikit_learn(tmp_path: Path, started: list[Any]) -> None:
    written = study({}, seeds=2, out=tmp_path, report=tmp_path / "reports/x-1.5", command="hpdval study --seeds 2")
    assert written == tmp_path / "reports/x-1.5.md"
    text = written.read_text()
    rows = {cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in (r.split("|") for r in text.splitlines())
            if len(cells) > 2}  # fmt: skip
    groups = ([0, 1, 2], [0], [1], [2])
    assert rows["zero-shot"][:4] == [f"{mean_ap('02', 0, classes):.2f}" for classes in groups]
    for method, number in (("stage 1", "03"), ("stage 2", "04")):
        for cell, classes in zip(rows[method], groups, strict=False):
            values = [mean_ap(number, seed, classes) for seed in (0, 1)]
            assert cell == f"{np.mean(values):.2f} ({np.std(values, ddof=1):.2f})"
    gains = [line for line in text.splitlines() if line.startswith("| stage 2 against zero-shot") and " total " in line]
    after, before = np.mean([mean_ap("04", s, [0, 1, 2]) for s in (0, 1)]), mean_ap("02", 0, [0, 1, 2])
    assert f" {after - before:.2f} " in gains[0]
    assert gains[0].endswith("yes |")
    assert "345 training and 60 test images, 3 classes" in text
    assert "- drawn by a test" in text
    assert text.endswith("    hpdval study --seeds 2\n")


def test_the_csv_holds_every_class_of_every_seed(tmp_path: Path, started: list[Any]) -> None:
    study({}, seeds=2, out=tmp_path)
    table = pd.read_csv(tmp_path / "report.csv")
    assert table["class"].tolist() == list(CLASSES)
    assert table["train"].tolist() == COUNTS.tolist()
    columns = {"zero-shot": ("02", 0)} | {
        f"{m}, seed {s}": (n, s) for m, n in (("stage 1", "03"), ("stage 2", "04")) for s in (0, 1)
    }
    assert list(table.columns[5:]) == list(columns)
    for name, (number, seed) in columns.items():
        assert table[name].tolist() == pytest.approx([mean_ap(number, seed, [c]) for c in range(3)], abs=5e-5)


def test_the_command_in_the_report_can_be_typed_again(
    tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["study", "-p", "template=a photo of a {}.", "--seeds", "1", "--out", str(tmp_path / "my runs")]
    assert cli.main(arguments) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert shlex.split(last) == ["hpdval", *arguments]


def test_a_demo_is_one_seed(tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    summary = demo(tmp_path, seed=1)
    assert [number for number, _, _ in started] == ["01", "02", "03", "04"]
    assert f"{mean_ap('04', 1, [0, 1, 2]):.2f}" in summary.read_text().splitlines()[-1]
    assert summary.read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "seeds", "words"),
    [({}, 0, "give at least 1"), ({"seed": 1}, 1, "set by the study itself"), ({"sead": 1}, 1, "parameter 'sead'")],
)
def test_what_is_wrong_starts_nothing(
    tmp_path: Path, started: list[Any], parameters: dict[str, Any], seeds: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        study(parameters, seeds=seeds, out=tmp_path)
    assert started == []
