"""Every benchmark runs, its report says what a reader needs, and what it computes with is right."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem not in {"__init__", "common", "run"})


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT))  # benchmarks are no part of the package
    monkeypatch.setenv("HPDVAL_CACHE", os.environ.get("HPDVAL_CACHE", ""))  # one that a benchmark sets goes with it
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def common() -> ModuleType:
    return import_module("benchmarks.common")


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_writes_its_report(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_module(f"benchmarks.{name}").main(["--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    if name == "memory" and not torch.cuda.is_available():
        assert said == "memory: needs a CUDA device, and torch sees none here; nothing was measured or written\n"
        assert not list(tmp_path.iterdir())
        return
    report = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert report.startswith("# ")
    for fact in (r"\n\|", rf"`[^`]*{name}[^`]*--quick", "\n- Hardware: ", "[Ll]oad average", r"\b20\d\d-\d\d-\d\d\b"):
        assert re.search(fact, report), fact


def test_growth_draws_its_figure(tmp_path: Path) -> None:
    growth = import_module("benchmarks.growth")
    curve = growth.Curve("x", [1, 2, 4], [[0.1], [0.2], [0.4]], [1.0, 4.0, 16.0])
    assert curve.exponents == pytest.approx((1.0, 2.0))
    growth.write_figure(growth.growth_figure({"Images": ("images", [curve])}), tmp_path / "growth")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_cases_alternate(common: ModuleType) -> None:
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = common.alternate(cases, repeats=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(each.cpu) for each in times.values()] == [len(each.wall) for each in times.values()] == [3, 3]


def test_ratio_and_spread(common: ModuleType) -> None:
    assert common.ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]) == (4 / 3, 1.0, 3.0)
    assert common.spread([0.002, 0.001, 0.004]) == "2.0 (1.0 to 4.0)"
    assert common.exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert math.isnan(common.exponent([1, 2], [0.0, 1.0]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a process's memory")
def test_peak_memory_is_what_was_held_at_once(common: ModuleType) -> None:
    def twice() -> None:
        for _ in range(2):  # freed in between
            np.ones(40 * 2**20, np.uint8).sum(dtype=np.uint8)

    assert common.peak_memory(twice) == pytest.approx(40, abs=4)


def test_cards_hold_what_was_measured() -> None:
    table = import_module("benchmarks.memory").card_table({(224, 8): 5.0, (224, 16): 11.5, (448, 8): None})
    assert table["224 pixels"].to_list() == ["8", "8", "16", "16", "16", "16"]
    assert set(table["448 pixels"]) == {"none measured"}


def test_the_table_of_memory_says_what_did_not_fit() -> None:
    table = import_module("benchmarks.memory").peak_table(
        {(224, 8): 5.04, (224, 16): 11.5, (448, 8): 20.0, (448, 16): None}
    )
    assert table.to_dict("list") == {
        "batch": ["8", "16"],
        "224 pixels, GiB": ["5.0", "11.5"],
        "448 pixels, GiB": ["20.0", "out of memory"],
    }


def test_the_runner_knows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    run = import_module("benchmarks.run")
    assert run.names() == NAMES
    assert run.main(["nonsense", "--quick"]) == 2
    assert "no benchmark 'nonsense'; benchmarks: " in capsys.readouterr().err
