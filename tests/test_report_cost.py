"""What training took: read from the runs, added up over the stages, shown beside mAP, and never invented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpdval import tables
from hpdval.errors import ConfigError, RunError
from hpdval.files import write_json
from hpdval.metrics import evaluate
from hpdval.report import build_report
from hpdval.report.latex import escape
from hpdval.run import Run

CLASSES, COUNTS = ("dog", "cash_$$", "rare"), np.array([400, 60, 3])
TARGETS = (np.random.default_rng(0).random((80, 3)) < [0.5, 0.3, 0.2]).astype(np.uint8)
QUICK: dict[str, Any] = {"resamples": 20, "permutations": 19, "show": False, "figures": ("png",)}
STAGE1 = {"parameters": 1_016_832, "seconds": 12.25}
STAGE2 = {"parameters": 5_120, "seconds": 3.5}


def made(folder: Path, method: str, seed: int = 0, trained: Any = None, strength: float = 1.0) -> Path:
    """A finished run; ``trained`` None leaves the record out, as runs made before have it."""
    rng = np.random.default_rng(seed + round(100 * strength))
    scores = (strength * TARGETS + rng.normal(size=TARGETS.shape)).astype(np.float32)
    with Run(folder, kind="run", config={"seed": seed, "method": method}) as run:
        run.save_predictions([f"{i}.jpg" for i in range(len(TARGETS))], scores, TARGETS, CLASSES)
        about = {"protocol": "toys test, 80 images", "selection": "none (last epoch)", "classes": CLASSES}
        record = {} if trained is None else {"trained": trained}
        result = evaluate(scores, TARGETS, COUNTS, **about)
        run.finish({"method": method, "seed": seed, "notes": [], **record, **result.as_dict()})
    return folder


def swept(folder: Path, cells: Mapping[str, Mapping[int, tuple[str, Any]]], axis: str | None = None) -> Path:
    """A sweep of one comparison: label -> seed -> (method, its record)."""
    runs, stated = {}, []
    for i, (label, seeds) in enumerate(cells.items()):
        names = {str(seed): f"{i}-{seed}" for seed in seeds}
        for seed, (method, trained) in seeds.items():
            made(folder / "runs" / names[str(seed)], method, seed, trained, 0.5 + i / 2)
            runs[names[str(seed)]] = {"status": "done"}
        stated.append({"label": label, "value": i if axis else None, "runs": names})
    one = {"name": "rivals", "title": "Rivals & co", "reference": next(iter(cells)), "cells": stated, "axis": axis}
    write_json(folder / "sweep.json", {"title": "R", "command": "", "comparisons": [one], "runs": runs})
    return folder


CELLS: dict[str, dict[int, tuple[str, Any]]] = {
    "zero-shot": {0: ("zero-shot", None)},
    "ensemble": {0: ("ensemble", {})},
    "probe_50%": {s: ("linear probe", {"linear probe": {"parameters": 390, "seconds": 0.5 + s}}) for s in (0, 1)},
    "ours": {
        s: ("stage 2", {"stage 1": STAGE1, "stage 2": {**STAGE2, "seconds": 3.5 + 2 * s}}) for s in (0, 1)
    },
    "old": {0: ("stage 1", None), 1: ("stage 1", {"stage 1": STAGE1})},
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = swept(tmp_path_factory.mktemp("sweep"), CELLS)
    return build_report([folder], tmp_path_factory.mktemp("built") / "report", **QUICK).parent


def test_a_run_costs_what_it_and_those_before_it_took(tmp_path: Path) -> None:
    both = made(tmp_path / "both", "stage 2", trained={"stage 1": STAGE1, "stage 2": STAGE2})
    assert tables.run_cost(both) == tables.Cost(parameters=1_021_952, seconds=15.75)
    nothing = tables.Cost(parameters=0, seconds=None)
    assert tables.run_cost(made(tmp_path / "zero", "zero-shot, both views")) == nothing
    assert tables.run_cost(made(tmp_path / "neighbours", "kNN", trained={})) == nothing
    assert tables.run_cost(made(tmp_path / "old", "stage 1")) is None, "made before this was recorded"


@pytest.mark.parametrize("trained", [[1], {"a": 3}, {"a": {"parameters": 1}}, {"a": {**STAGE1, "seconds": "long"}}])
def test_a_record_that_is_none_is_refused_in_one_line(tmp_path: Path, trained: Any) -> None:
    with pytest.raises(ConfigError, match="result: trained") as refused:
        made(tmp_path / "run", "stage 1", trained=trained)
    assert "\n" not in str(refused.value)


def test_costs_are_means_over_seeds_and_unknown_where_one_is(tmp_path: Path) -> None:
    seconds = (3.0, 4.0, 8.0)
    runs = [made(tmp_path / f"{s}", "a", s, {"a": {**STAGE2, "seconds": t}}) for s, t in enumerate(seconds)]
    old = made(tmp_path / "old", "a", 7)
    table = tables.cost_table({"a": runs, "one": runs[0], "mixed": [runs[0], old]}).set_index("method")
    assert table.loc["a"].tolist() == pytest.approx([5120, 5.0, np.std(seconds, ddof=1)])
    assert table.loc["one", ["parameters", "seconds"]].tolist() == [5120, 3.0]
    assert table.loc["mixed"].isna().all()
    assert list(tables.cost_table({"one": runs[0]})) == ["method", "parameters", "seconds"], "no spread of one seed"
    assert "ratios at best" in tables.to_markdown(tables.cost_table({"one": runs[0]}))
    with pytest.raises(RunError, match="no run was given for 'none'"):
        tables.cost_table({"none": []})


def test_the_report_shows_costs_beside_map(report: Path) -> None:
    found = pd.read_csv(report / "tables/rivals-cost.csv").set_index("setting")
    assert found.loc["ours", ["parameters", "seconds", "seconds sd"]].tolist() == pytest.approx(
        [1_021_952, 16.75, np.sqrt(2)], abs=1e-5
    )
    assert found["parameters"].tolist()[:3] == [0, 0, 390]
    assert found.loc[["zero-shot", "ensemble", "old"], "seconds"].isna().all()
    assert np.isnan(found.loc["old", "parameters"]), "one of its runs recorded nothing"
    main = pd.read_csv(report / "tables/rivals.csv").set_index("setting")
    assert found["total"].to_dict() == main["total"].drop("chance").to_dict()
    assert found.loc["ours", "total sd"] == main.loc["ours", "total sd"]
    lines = (report / "tables/rivals-cost.md").read_text().replace("\\", "").splitlines()
    cells = {row[0]: row[1:3] for row in ([c.strip() for c in line.strip("|").split("|")] for line in lines[2:7])}
    assert cells == {
        "zero-shot (reference)": ["0", "-"],
        "ensemble": ["0", "-"],
        "probe_50%": ["390", "1.0 (0.71)"],
        "ours": ["1.02 M", "16.8 (1.4)"],
        "old": ["-", "-"],
    }


def test_wherever_costs_are_shown_it_is_said_what_seconds_are_worth(report: Path) -> None:
    for name in ("index.html", "report.md", "tables/rivals-cost.md", "tables/rivals-cost.tex"):
        assert "machines are shared, so read them as ratios at best" in (report / name).read_text(), name
    paper = (report / "tables/rivals-cost.tex").read_text()
    assert r"\label{tab:rivals-cost}" in paper
    assert escape("probe_50%") + " & 390 & " in paper
    assert re.search(r"^zero-shot \(reference\) & 0 & -- & \d", paper, re.MULTILINE)


def test_figures_of_cost_are_drawn_where_costs_differ(report: Path, tmp_path: Path) -> None:
    assert {path.stem for path in (report / "figures").glob("rivals-cost*")} == {
        "rivals-cost-seconds",
        "rivals-cost-parameters",
    }
    alike = {f"loss {i}": {0: ("a", {"a": {"parameters": 7, "seconds": 1.0 + i}})} for i in range(3)}
    alike["zero-shot"] = {0: ("zero-shot", None)}
    built = build_report([swept(tmp_path / "alike", alike)], tmp_path / "one", **QUICK).parent
    assert [path.stem for path in (built / "figures").glob("*cost*")] == ["rivals-cost-seconds"], "1 s to 3 s"
    curve = build_report([swept(tmp_path / "curve", CELLS, axis="k")], tmp_path / "two", **QUICK).parent
    assert not [*(curve / "figures").glob("*cost*")], "a curve has its own figure"
    assert (curve / "tables/rivals-cost.csv").exists()


def test_without_a_record_there_is_no_table_of_costs(tmp_path: Path) -> None:
    old = {"zero-shot": {0: ("zero-shot", None)}, "old": {0: ("stage 1", None)}}
    built = build_report([swept(tmp_path / "sweep", old)], tmp_path / "report", **QUICK).parent
    assert not [*built.rglob("*cost*")]
    assert "ratios" not in (built / "report.md").read_text()
