"""Build a report: gather, compute, and write a folder that is whole, or as it was before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hpdval.errors import ConfigError
from hpdval.files import resolved
from hpdval.plots import figure_bytes
from hpdval.provenance import code_state
from hpdval.report.analyse import Analysis, Statistics, analyse, workers
from hpdval.report.cost import cost_pictures, cost_tables
from hpdval.report.document import Document, Section, Table
from hpdval.report.draw import comparison_pictures
from hpdval.report.folder import earlier_files, write_folder
from hpdval.report.gather import Folder, Gathered, gather
from hpdval.report.page import html_page, markdown_page, markdown_table
from hpdval.report.tabulate import comparison_tables, summary_table
from hpdval.run import read_manifest

FORMATS = ("pdf", "svg", "png")
KIND = "hpdval report"
DPI = 300  # of PNG, for print


def build_report(
    sources: Sequence[Folder],
    out: Folder,
    *,
    title: str = "",
    resamples: int = 2000,
    permutations: int = 2000,
    figures: Sequence[str] = FORMATS,
    processes: int = 1,
    show: bool = True,
) -> Path:
    """Write the report of finished runs into the folder ``out`` and return its ``index.html``.

    The same predictions give the same bytes, wherever the runs lie.  An earlier report in ``out`` is replaced, files
    of it that the new one does not have are removed.

    Args:
        sources: folders of sweeps, of finished runs, or of notebooks that made runs.
        title: by default that of the sweep.
        resamples, permutations: of the bootstrap and of the permutation test.
        figures: formats, of ``pdf``, ``svg`` and ``png``.
        processes: how many compute; more than 1 needs a main module that can be imported.
        show: print a line for each comparison.

    Raises:
        ConfigError: an unknown format, or fewer than 2 resamples or permutations.
        RunError: no finished run, damaged predictions, a comparison over different test images, or ``out`` holds files
            that are not of a report.
    """
    for name, number in (("resamples", resamples), ("permutations", permutations)):
        if number < 2:
            raise ConfigError(f"{name} is {number}; it must be at least 2, and 2000 is usual")
    if unknown := [kind for kind in figures if kind not in FORMATS]:
        raise ConfigError(f"{unknown[0]!r} is no format of figures; choose from {', '.join(FORMATS)}")
    folder = resolved(out)
    earlier_files(folder, KIND)  # refused before the long work, not after it
    gathered = gather(sources)
    analyses, count = [], len(gathered.comparisons)
    with workers(processes) as mapped:
        statistics = Statistics(resamples=resamples, permutations=permutations, mapped=mapped)
        for i, comparison in enumerate(gathered.comparisons, 1):
            began = time.monotonic()
            analyses.append(analyse(comparison, statistics))
            if show:
                seconds, cells = time.monotonic() - began, len(comparison.cells)
                print(f"{i}/{count} {comparison.name}: {cells} setting{'s' * (cells > 1)}, {seconds:.0f} s", flush=True)
    document = _document(gathered, analyses, title, resamples=resamples, permutations=permutations)
    files = _files(document, figures)
    about = {"title": document.title, "resamples": resamples, "permutations": permutations, "figures": list(figures)}
    write_folder(folder, KIND, files, {**about, "code": code_state(), "inputs": _inputs(analyses)})
    return folder / "index.html"


def _document(gathered: Gathered, analyses: Sequence[Analysis], title: str, **counts: int) -> Document:
    state = code_state()
    commit = f", commit {state['commit'][:10]}{' with changes' if state['dirty'] else ''}" if state["commit"] else ""
    sections = [
        Section(
            name=one.comparison.name,
            title=one.comparison.title,
            claim=one.comparison.claim,
            tables=(*comparison_tables(one, **counts), *cost_tables(one)),
            pictures=(*comparison_pictures(one), *cost_pictures(one)),
            notes=one.notes,
        )
        for one in analyses
    ]
    return Document(
        title=title or gathered.title,
        summary=summary_table(analyses),
        sections=tuple(sections),
        missing=gathered.missing,
        provenance=_provenance(analyses),
        commands=gathered.commands,
        code=f"hpdval {state['version']}{commit}",
        method=(
            "Mean average precision (mAP) in percent, all-point, ties grouped; a bracket after a number is the sample "
            "standard deviation over seeds, square brackets are 95 % bootstrap intervals over test images. A gain or a "
            "loss is claimed only where the paired interval excludes 0 and all seeds agree.",
        ),
    )


def _provenance(analyses: Sequence[Analysis]) -> Table:
    """Return a row for each run: what made it, when its code was what, and the hash of its predictions."""
    rows = []
    for one in analyses:
        for cell in one.cells:
            for seed, folder in cell.cell.runs.items():
                manifest = read_manifest(folder)
                code, commit = manifest["code"], (manifest["code"]["commit"] or "-")[:10]
                rows.append(
                    {
                        "comparison": one.comparison.name,
                        "setting": cell.label,
                        "seed": str(seed),
                        "code": f"{code['version']}, {commit}{' with changes' if code['dirty'] else ''}",
                        "device": manifest["hardware"]["cuda"] or manifest["hardware"]["machine"],
                        "minutes": f"{manifest['wall_seconds'] / 60:.1f}",
                        "predictions (sha256)": manifest["files"]["predictions.npz"][:12],
                    }
                )
    frame = pd.DataFrame(rows)
    return Table(name="provenance", caption="The runs behind the numbers.", frame=frame, shown=frame)


def _inputs(analyses: Sequence[Analysis]) -> list[dict[str, Any]]:
    return [
        {
            "comparison": one.comparison.name,
            "setting": cell.cell.label,
            "seed": seed,
            "predictions": read_manifest(folder)["files"]["predictions.npz"],
            "key": read_manifest(folder)["key"],
        }
        for one in analyses
        for cell in one.cells
        for seed, folder in cell.cell.runs.items()
    ]


def _files(document: Document, figures: Sequence[str]) -> dict[str, bytes]:
    """Return every file of the report by its name; nothing is written before all are made."""
    suffix = next((kind for kind in ("svg", "png") if kind in figures), "")
    pictures = [picture for one in document.sections for picture in one.pictures]
    drawings = {picture.name: figure_bytes(picture.chart, "svg") for picture in pictures}
    found = {
        "index.html": html_page(document, drawings).encode(),
        "report.md": markdown_page(document, suffix).encode(),
    }
    tables = [document.summary, document.provenance, *(table for one in document.sections for table in one.tables)]
    for table in tables:
        text = table.frame.to_csv(index=False, lineterminator="\n", float_format="%.6f")
        found[f"tables/{table.name}.csv"] = text.encode()
        if table.shown is not None:
            found[f"tables/{table.name}.md"] = (markdown_table(table.shown) + "\n").encode()
        if table.tex:
            found[f"tables/{table.name}.tex"] = table.tex.encode()
    for picture in pictures:
        for kind in figures:
            drawn = drawings[picture.name] if kind == "svg" else figure_bytes(picture.chart, kind, dpi=DPI)
            found[f"figures/{picture.name}.{kind}"] = drawn
    return found
