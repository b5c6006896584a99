"""Reports: gathered from sweeps and runs, the same bytes each time, safe to embed and to typeset, honest about gaps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.metrics import average_precision_score

from hpdval import cli
from hpdval.errors import ConfigError, RunError
from hpdval.files import write_json
from hpdval.metrics import bootstrap, evaluate, holm, paired_bootstrap, permutation_test
from hpdval.report import build_report
from hpdval.report.analyse import Statistics, analyse
from hpdval.report.build import KIND
from hpdval.report.folder import write_folder
from hpdval.report.gather import compare_runs, gather
from hpdval.report.latex import escape, highlighted, latex_table
from hpdval.run import Run, read_predictions

N = 120
CLASSES = ("dog", "traffic_light", "50% of cash_$$", "<b>&x", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "rare \\ {one}")
COUNTS = np.array([400, 120, 60, 25, 9, 3])
TARGETS = (np.random.default_rng(0).random((N, 6)) < np.linspace(0.5, 0.15, 6)).astype(np.uint8)


def made(
    folder: Path,
    strength: float,
    seed: int,
    *,
    method: str = "stage 1",
    config: Mapping[str, Any] | None = None,
    selection: str = "none (last epoch)",
    targets: np.ndarray = TARGETS,
    classes: Sequence[str] = CLASSES,
    counts: np.ndarray = COUNTS,
) -> Path:
    """A finished run whose scores know the targets more or less, with two epochs of training."""
    rng = np.random.default_rng(round(1000 * strength) + seed)
    scores = (strength * targets + rng.normal(size=targets.shape)).astype(np.float32)
    given = {"seed": seed, **(config or {"stage1": {"lr": strength}})}
    with Run(folder, kind=method.replace(" ", ""), config=given) as run:
        ids = [f"{i}.jpg" for i in range(len(targets))]
        run.save_predictions(ids, scores, targets, classes)
        for step in range(0 if method == "zero-shot" else 6):
            loss = 1 / (1 + strength + step) + 0.02 * rng.random()
            run.log(stage="stage1", step=step + 1, epoch=step // 2, loss=loss, cls=loss, lr=1e-4)
        about = {"protocol": f"toys test, {len(targets)} images", "selection": selection, "classes": classes}
        result = evaluate(scores, targets, counts, **about)
        run.finish({"method": method, "seed": seed, "notes": [], **result.as_dict()})
    return folder


def sweep(folder: Path, seeds: Sequence[int] = (0, 1)) -> Path:
    """A sweep with a curve, categories and components, one run of which failed."""
    runs: dict[str, Any] = {}

    def cell(label: str, strength: float, value: float | None = None, **options: Any) -> dict[str, Any]:
        names = {str(seed): f"{strength:g}-{seed}" for seed in seeds}
        for seed, name in names.items():
            if name not in runs:
                made(folder / "runs" / name, strength, int(seed), **options)
                runs[name] = {"status": "done"}
        return {"label": label, "value": value, "runs": names}

    alpha = [cell(f"\N{GREEK SMALL LETTER ALPHA} = {v:g}", 1 + v, value=v) for v in (0.01, 0.1, 0.5)]
    losses = [cell("BCE & <i>co</i>", 1.1), cell("DB_focal 50%", 1.6), cell("test choice", 3, selection="best on test")]
    parts = [cell("zero-shot", 0.7, method="zero-shot"), cell("+ stage 1", 1.1), cell("+ stage 2", 1.6)]
    losses[1]["runs"]["7"] = "failed"
    runs["failed"] = {"status": "failed", "error": "failed in cell 5: no memory"}
    comparisons = [
        {"name": "alpha", "title": "Weight \N{GREEK SMALL LETTER ALPHA} of the global view", "axis": "alpha",
         "reference": alpha[1]["label"], "claim": "Best at 0.4 & robust", "cells": alpha},
        {"name": "Losses!", "title": "Losses", "reference": "BCE & <i>co</i>", "cells": losses},
        {"name": "parts", "title": "What each part adds", "reference": "zero-shot", "claim": "", "cells": parts},
    ]  # fmt: skip
    write_json(
        folder / "sweep.json",
        {"title": "Ablations <1>", "command": "hpdval sweep x", "comparisons": comparisons, "runs": runs},
    )
    return folder


QUICK: dict[str, Any] = {"resamples": 50, "permutations": 49, "show": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, which tests may read only."""
    return build_report([runs], tmp_path_factory.mktemp("built") / "report", **QUICK).parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- what a report is about --------------------------------------------------------------------------------------------


def test_a_sweep_is_reported_as_it_was_recorded(runs: Path) -> None:
    found = gather([runs])
    assert found.title == "Ablations <1>"
    assert found.commands == ("hpdval sweep x",)
    assert [one.name for one in found.comparisons] == ["alpha", "Losses", "parts"], "names that files can have"
    assert [sorted(cell.runs) for cell in found.comparisons[1].cells] == [[0, 1]] * 3
    assert found.missing == ("Losses!, DB_focal 50%, seed 7: failed: failed in cell 5: no memory",)


def test_runs_that_differ_in_the_seed_alone_are_one_setting(tmp_path: Path) -> None:
    folders = [
        made(tmp_path / f"{lr}-{s}", lr, s, config={"stage1": {"lr": lr, "k": 1}}) for lr in (1, 2) for s in (0, 1)
    ]
    folders.append(made(tmp_path / "zero", 0.5, 0, method="zero-shot"))
    found = compare_runs(folders)
    assert [cell.label for cell in found.cells] == ["stage 1, stage1.lr=1", "stage 1, stage1.lr=2", "zero-shot"]
    assert [sorted(cell.runs) for cell in found.cells] == [[0, 1], [0, 1], [0]]
    assert found.reference == "zero-shot"
    assert compare_runs(folders[:4]).reference == "stage 1, stage1.lr=1"
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    with pytest.raises(RunError, match="are the same run twice"):
        compare_runs([*folders, copy])
    assert len(compare_runs([*folders, folders[0]]).cells) == 3, "the same folder given twice is one"


def test_the_folder_of_a_notebook_stands_for_the_methods_it_made(tmp_path: Path) -> None:
    for method in ("zero-shot", "stage 1"):
        made(tmp_path / method.replace(" ", ""), 1, 0, method=method)
    with Run(tmp_path, kind="reproduce", config={}) as run:
        run.finish({"folders": {"zero-shot": "zero-shot", "stage 1": "stage1"}})
    (found,) = gather([tmp_path]).comparisons
    assert [cell.label for cell in found.cells] == ["zero-shot", "stage 1"]


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn_and_intervals_those_of_the_bootstrap(runs: Path, report: Path) -> None:
    table = pd.read_csv(report / "tables/alpha.csv").set_index("setting")
    scores = [read_predictions(runs / f"runs/1.5-{seed}")["scores"] for seed in (0, 1)]
    totals = [100 * average_precision_score(TARGETS, one, average="macro") for one in scores]
    interval = bootstrap(scores, TARGETS, COUNTS, resamples=50)["tail"]
    row = table.loc["\N{GREEK SMALL LETTER ALPHA} = 0.5"]
    assert row["total"] == pytest.approx(np.mean(totals), abs=1e-5)
    assert row["total sd"] == pytest.approx(np.std(totals, ddof=1), abs=1e-5)
    assert (row["tail low"], row["tail high"]) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert row["value"] == 0.5
    assert table.loc["chance", "head"] == pytest.approx(100 * TARGETS[:, :2].mean())


def test_differences_are_paired_and_their_p_values_adjusted_within_the_comparison(runs: Path, report: Path) -> None:
    table = pd.read_csv(report / "tables/parts-differences.csv")
    total = table[table["classes"] == "total"].set_index("comparison")
    read = {
        s: [read_predictions(runs / f"runs/{s}-{seed}")["scores"] for seed in (0, 1)] for s in ("0.7", "1.1", "1.6")
    }
    zero = read["0.7"][:1]  # it trained nothing: one run stands for every seed
    p = [permutation_test(read[s], zero, TARGETS, COUNTS, permutations=49)["total"] for s in ("1.1", "1.6")]
    expected = paired_bootstrap(read["1.6"], zero, TARGETS, COUNTS, resamples=50)["total"]
    assert total["p_holm"].tolist() == pytest.approx(holm(p), abs=1e-5)
    assert total.loc["+ stage 2", "difference"] == pytest.approx(expected.estimate, abs=1e-5)
    assert total.loc["+ stage 2", "low"] == pytest.approx(expected.low, abs=1e-5)


def test_a_run_that_stands_for_two_settings_is_computed_once(runs: Path) -> None:
    asked: list[int] = []

    def counted(function: Any, items: Any) -> Any:
        asked.append(len(items))
        return map(function, items)

    statistics = Statistics(resamples=10, permutations=9, mapped=counted)
    losses, parts = gather([runs]).comparisons[1:]
    twice = replace(losses, cells=(*losses.cells, replace(losses.cells[0], label="BCE again")))
    first = analyse(twice, statistics)
    assert asked == [3, 3], "three settings, and three differences to the reference"
    analyse(parts, statistics)
    assert asked == [3, 3, 1, 2], "of + stage 1 and + stage 2 the intervals are known"
    again = first.differences.set_index("comparison").loc["BCE again"]
    assert set(again["difference"]) == {0.0}
    assert first.intervals["BCE again"] == first.intervals["BCE & <i>co</i>"]


def test_more_processes_give_the_same_bytes(runs: Path, report: Path, tmp_path: Path) -> None:
    found = build_report([runs], tmp_path / "r", figures=(), processes=2, **QUICK).parent
    for table in (report / "tables").iterdir():
        assert (found / "tables" / table.name).read_bytes() == table.read_bytes()


def test_what_was_selected_on_test_images_is_marked_and_claims_nothing(report: Path) -> None:
    assert "test choice *" in (report / "report.md").read_text().replace("\\", "")
    paper = (report / "tables/Losses.tex").read_text()
    marked = next(line for line in paper.splitlines() if line.startswith("test choice *"))
    assert "textbf" not in marked
    assert "underline" not in marked
    assert "upper bound" in paper
    differences = pd.read_csv(report / "tables/Losses-differences.csv").set_index("comparison")
    assert set(differences.loc["test choice *", "gain"]) == {"not claimed"}
    summary = pd.read_csv(report / "tables/summary.csv").set_index("comparison")
    assert summary.loc["Losses", "best other"] == "DB_focal 50%", "although the marked one is higher"


def test_seeds_that_cannot_be_paired_leave_a_note(tmp_path: Path) -> None:
    folders = [made(tmp_path / "a", 1, 0), made(tmp_path / "b", 2, 1)]
    page = build_report(folders, tmp_path / "r", figures=(), **QUICK).read_text()
    assert "have no seed in common; run both with the same seeds" in page
    assert not (tmp_path / "r/tables/runs-differences.csv").exists()


def test_other_readouts_are_scored_under_that_of_the_reference_and_named(tmp_path: Path) -> None:
    folders = [made(tmp_path / "a", 1, 0), made(tmp_path / "b", 2, 0)]
    result = json.loads((folders[1] / "result.json").read_text())
    with Run(folders[1], kind="stage1", config={"seed": 0, "stage1": {"lr": 2}}) as run:
        run.finish({**result, "readout": "l2"})
    build_report(folders, tmp_path / "r", figures=(), **QUICK)
    assert "recorded under read-out l2; scored here under raw" in (tmp_path / "r/report.md").read_text()
    total = pd.read_csv(tmp_path / "r/tables/runs.csv").set_index("setting").loc["stage 1, stage1.lr=2", "total"]
    assert total == pytest.approx(result["total"], abs=1e-5)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_same_runs_elsewhere_give_the_same_bytes(runs: Path, report: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs, tmp_path / "copy of the runs")
    again = contents(build_report([copy], tmp_path / "again", **QUICK).parent)
    first = contents(report)
    assert sorted(first) == sorted(again)
    assert [name for name in first if first[name] != again[name]] == []
    for name, data in again.items():
        assert str(tmp_path).encode() not in data, name
        assert str(runs).encode() not in data, name


def test_the_manifest_lists_every_file_with_its_hash(runs: Path, report: Path) -> None:
    from hashlib import sha256

    manifest, files = json.loads((report / "manifest.json").read_text()), contents(report)
    assert manifest["files"] == {n: sha256(d).hexdigest() for n, d in files.items() if n != "manifest.json"}
    predictions = sha256((runs / "runs/1.5-1/predictions.npz").read_bytes()).hexdigest()
    assert [one["seed"] for one in manifest["inputs"] if one["predictions"] == predictions] == [1]
    assert manifest["status"] == "done"


def test_rebuilding_replaces_own_files_and_spares_foreign_ones(tmp_path: Path) -> None:
    runs = [made(tmp_path / name, strength, 0) for name, strength in (("a", 1), ("b", 2))]
    out = build_report(runs, tmp_path / "r", figures=("png",), **QUICK).parent
    assert (out / "figures/runs-bars.png").exists()
    build_report(runs[:1], out, figures=(), **QUICK)
    assert not (out / "figures").exists(), "what the new report does not have is removed"
    assert not (out / "tables/runs-ranks.csv").exists()
    before = contents(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds files that are not of a report \(notes.txt\)"):
        build_report(runs, out, figures=(), **QUICK)
    assert contents(out) == {**before, "notes.txt": b"mine"}


def test_half_a_first_manifest_makes_a_folder_no_less_ours(tmp_path: Path) -> None:
    left = tmp_path / ".manifest.json.abc.tmp"
    left.write_text("half")
    (tmp_path / ".index.html.abc.tmp").write_text("half")  # which no build writes before its manifest
    with pytest.raises(RunError, match=r"not of a report \(\.index\.html\.abc\.tmp\)"):
        write_folder(tmp_path, KIND, {}, {})
    (tmp_path / ".index.html.abc.tmp").unlink()
    write_folder(tmp_path, KIND, {"a.txt": b"whole"}, {})
    assert set(contents(tmp_path)) == {"a.txt", "manifest.json"}


def test_what_cannot_be_reported_is_refused_in_one_line(tmp_path: Path) -> None:
    good = made(tmp_path / "good", 1, 0)
    Run(tmp_path / "unfinished", kind="stage1", config={}).close()
    other = made(tmp_path / "other", 2, 0, targets=TARGETS[:100])
    damaged = made(tmp_path / "damaged", 2, 0)
    (damaged / "predictions.npz").write_bytes(b"PK" + bytes(100))
    plain = Run(tmp_path / "plain", kind="x", config={})
    plain.save_predictions(range(N), np.zeros((N, 6)), TARGETS, CLASSES)
    plain.finish({"class_counts": COUNTS.tolist(), "readout": "raw"})
    for sources, message in (
        ([], "no runs were given"),
        ([tmp_path / "nothing"], "is not a run folder"),
        ([good, tmp_path / "unfinished"], "is not a finished run"),
        ([good, other], "differ in ids; compare runs on the same test images only"),
        ([good, damaged], "differs from its hash in the manifest"),
        ([plain.folder], "give runs of a method"),
    ):
        with pytest.raises(RunError, match=message) as refused:
            build_report(sources, tmp_path / "r", **QUICK)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "r").exists()
    with pytest.raises(ConfigError, match="'gif' is no format of figures; choose from pdf, svg, png"):
        build_report([good], tmp_path / "r", figures=("gif",))
    with pytest.raises(ConfigError, match="permutations is 1"):
        build_report([good], tmp_path / "r", permutations=1)


def test_the_command_prints_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "a", 1, 0)
    quick = ["--resamples", "50", "--permutations", "49", "--figures", "png", "--title", "Mine & yours"]
    assert cli.main(["report", str(run), "-o", str(tmp_path / "r"), *quick]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1/1 runs: 1 setting, \d+ s", lines[0])
    assert lines[1:] == [str(tmp_path / "r/index.html")]
    assert "<h1>Mine &amp; yours</h1>" in (tmp_path / "r/index.html").read_text()
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "r")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


# -- the pages ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see: elements that open and close in order, and where anything is fetched from."""

    EMPTY = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.words.setdefault(self.open[-1], []).append(data)


def test_the_page_stands_alone_and_shows_names_as_they_are(report: Path) -> None:
    page = Page((report / "index.html").read_text())
    assert page.open == [], "every element is closed"
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & {"script", "link", "iframe", "i", "b"}
    addresses = [value or "" for _, given in page.elements for key, value in given.items() if key in ("src", "href")]
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    targets = {given.get("id") for _, given in page.elements}
    assert {address[1:] for address in addresses if address.startswith("#")} <= targets
    images = [given for tag, given in page.elements if tag == "img"]
    assert len(images) == 15
    assert all(given["alt"] for given in images)
    tables = [tag for tag, _ in page.elements if tag == "table"]
    assert len(tables) == len(page.words["caption"]) == 11
    assert {given.get("scope") for tag, given in page.elements if tag == "th"} == {"col", "row"}
    assert "BCE & <i>co</i> (reference)" in page.words["th"]
    assert any("no memory" in line for line in page.words["li"])


def test_markdown_shows_names_as_they_are(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert "BCE &amp; &lt;i>co&lt;/i> (reference)" in text
    assert "<i>" not in text
    assert "DB\\_focal 50%" in text
    named = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(named) == 15
    assert all((report / name).is_file() for name in named)


def test_figures_embed_their_fonts_and_say_nothing_of_when_they_were_made(report: Path) -> None:
    figures = sorted((report / "figures").iterdir())
    assert {path.suffix for path in figures} == {".pdf", ".svg", ".png"}
    for path in figures:
        data = path.read_bytes()
        if path.suffix == ".pdf":
            assert b"/Type3" not in data
            assert b"/FontFile2" in data
        assert not any(word in data for word in (b"CreationDate", b"Producer", b"<dc:date>", b"Software"))


# -- LaTeX -------------------------------------------------------------------------------------------------------------


def check_table(text: str) -> None:
    """What would stop LaTeX: braces or environments that do not match, rows with other cells than columns."""
    depth = 0
    for character in re.sub(r"\\[\\{}%&$#_]", "", re.sub(r"^%.*$", "", text, flags=re.M)):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
        assert character not in "#$", "specials are escaped"
    assert depth == 0
    assert re.findall(r"\\begin{(.+?)}", text) == re.findall(r"\\end{(.+?)}", text)[::-1]
    columns = re.search(r"\\begin{tabular}{@{}(\w+)@{}}", text)
    assert columns
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) > 1
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns[1])}
    assert not re.search("[^\x00-\u017f]", text), "only what the fonts have"


def test_every_table_for_a_paper_is_well_formed(report: Path) -> None:
    tables = sorted((report / "tables").glob("*.tex"))
    assert len(tables) == 9
    for path in tables:
        check_table(path.read_text())
    paper = (report / "tables/alpha.tex").read_text()
    for words in ("toys test, 120 images", "6 classes", "read-out raw", "nothing selected", "seeds 0, 1", "Holm"):
        assert words in paper, "a table without its protocol says nothing"
    assert r"\label{tab:alpha}" in paper


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_every_table_compiles_in_a_paper_of_two_columns(report: Path, tmp_path: Path) -> None:
    tables = "".join(path.read_text() for path in sorted((report / "tables").glob("*.tex")))
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "paper.tex").write_text(f"{head}\n{tables}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]


def test_best_is_bold_second_underlined_and_ties_alike() -> None:
    nan = float("nan")
    assert highlighted([50, 51.004, 51.0, 49], [nan] * 4, [True] * 4) == [
        r"\underline{50.00}", r"\textbf{51.00}", r"\textbf{51.00}", "49.00",
    ]  # fmt: skip
    assert highlighted([50, 60, nan], [0.5, nan, nan], [True, False, True]) == [
        r"\textbf{50.00} {\scriptsize(0.50)}", "60.00", "--",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['\\ { } $ & % # _ ~ ^ < > | "', "α → β ≤ 1 × 2 · Ω", "犬 \u202e \x07 é\nß", "50%\\"])
def test_any_label_can_be_typeset(text: str) -> None:
    check_table(latex_table(["a", "b"], [[escape(text), "1"]], caption=escape(text), label="x"))


if __name__ == "__main__":  # a look at it: python tests/test_report.py FOLDER
    import sys

    shutil.rmtree(sys.argv[1], ignore_errors=True)
    print(
        build_report([sweep(Path(sys.argv[1]) / "sweep")], Path(sys.argv[1]) / "report", resamples=200, permutations=99)
    )


def test_no_process_outlives_a_killed_build() -> None:
    code = (
        "import os, time; from hpdval.report.analyse import workers\n"
        "with workers(2) as mapped:\n"
        "    print(*set(mapped(eval, ['__import__(\"os\").getpid()'] * 4)), flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    children = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    assert children
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]
