"""The whole method over several seeds, and the report of it: ``hpdval study``, and with one seed ``hpdval demo``.

Notebooks 01 and 02 do not depend on the seed and run once; 03 and 04 run for each.  No torch here: notebooks compute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpdval.config import Experiment
from hpdval.errors import ConfigError, RunError
from hpdval.files import atomic_write, resolved
from hpdval.notebook_parameters import find_notebook, notebook_parameters
from hpdval.notebook_runner import run_notebook
from hpdval.overrides import field_names
from hpdval.records import read_result

METHODS = {"02": "zero-shot", "03": "stage 1", "04": "stage 2"}  # the notebooks that score the test images
COLUMNS = ("total", "head", "medium", "tail")
COMPARED = (("stage 1", "zero-shot"), ("stage 2", "stage 1"), ("stage 2", "zero-shot"))
Folder = str | os.PathLike[str]
Runs = dict[str, Path]


def run_chapters(
    folder: Path, numbers: Sequence[str], parameters: Mapping[str, Any], *, earlier: Runs | None = None, force: bool
) -> Runs:
    """Run the notebooks ``numbers`` below ``folder`` and return their run folders, with those of ``earlier`` ones.

    A notebook is given those of the parameters that it has, and the run folders it builds on.
    """
    runs = dict(earlier or {})
    for number in numbers:
        notebook = find_notebook(number)
        linked = {"baseline_run": str(runs.get("02", "")), "stage1_run": str(runs.get("03", ""))}
        wanted, own = notebook_parameters(notebook), {**linked, **parameters}
        taken = {name: value for name, value in own.items() if _fits(name, wanted)}
        runs[number] = folder / notebook.stem
        run_notebook(notebook, taken, runs[number], force=force, replace_stale=True)
    return runs


def demo(out: Folder = "runs/demo", *, seed: int = 0, force: bool = False) -> Path:
    """Run notebooks 01 to 04 on the embedded data set with one seed, print the table and return the file it is in.

    Finished notebooks are skipped; those whose sources, parameters or code changed are run again.

    Raises:
        RunError: a notebook failed; running the same command again continues.
    """
    started, folder = time.monotonic(), resolved(out)
    runs = run_chapters(folder, ("01", *METHODS), {"seed": seed}, force=force)
    table = one_seed_table({METHODS[number]: read_result(runs[number]) for number in METHODS})
    with atomic_write(folder / "summary.md", "w") as file:
        file.write(table + "\n")
    print(f"\nscenes-lt, seed {seed}: mean average precision in percent on the test images\n\n{table}\n")
    print(where(runs, folder))
    print(f"{time.monotonic() - started:.0f} s in all")
    return folder / "summary.md"


def one_seed_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table (Markdown) of methods against total, head, medium and tail mAP.

    Raises:
        RunError: a result lacks one of the numbers.

    >>> print(one_seed_table({"zero-shot": {"total": 61.25, "head": 70.0, "medium": 60.0, "tail": None}}))
    | method    | total |  head | medium |  tail |
    |-----------|------:|------:|-------:|------:|
    | zero-shot | 61.25 | 70.00 |  60.00 |     - |
    """
    lines = ["| method    | total |  head | medium |  tail |", "|-----------|------:|------:|-------:|------:|"]
    for method, result in results.items():
        missing = [name for name in COLUMNS if name not in result]
        if missing:
            raise RunError(f"the result of {method} has no {', '.join(missing)}; run it again with --force")
        numbers = [result[name] for name in COLUMNS]
        total, head, medium, tail = ("-" if number is None else f"{number:.2f}" for number in numbers)
        lines.append(f"| {method:<9} | {total:>5} | {head:>5} | {medium:>6} | {tail:>5} |")
    return "\n".join(lines)


def where(runs: Runs, folder: Path) -> str:
    """Return which files lie where, for a reader who has just seen the table."""

    def short(path: Path) -> str:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    lines = ["executed notebooks:", *(f"  {short(run / 'executed.ipynb')}" for run in runs.values())]
    for title, pattern in (("tables", "*.csv"), ("figures", "*.png")):
        found: dict[Path, int] = {}
        for file in folder.rglob(pattern):
            found[file.parent] = found.get(file.parent, 0) + 1
        lines += [f"{title}:", *(f"  {short(place)}/ ({count})" for place, count in sorted(found.items()))]
    return "\n".join(lines)


def study(
    parameters: Mapping[str, Any],
    *,
    seeds: int = 3,
    out: Folder,
    report: Folder | None = None,
    command: str = "",
    force: bool = False,
) -> Path:
    """Run the method with seeds 0, 1, ... and write its report: tables, paired comparisons, and how it was made.

    Args:
        parameters: of the notebooks (``dataset``, ``clip``, ``stage1.lr``...); each notebook takes those it has.
        seeds: how many.
        out: folder of the runs; what is finished there is skipped.
        report: path without suffix: ``.md`` and ``.csv`` are written; by default ``report`` in ``out``.
        command: what the reader can type to make this report again.

    Raises:
        ConfigError: a wrong parameter or number of seeds; nothing was started.
        RunError: a notebook failed; running the same command again continues.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; give at least 1, and 3 for numbers that are to be compared")
    if "seed" in parameters or "run_dir" in parameters:
        raise ConfigError("seed and run_dir are set by the study itself; leave them out")
    _check_names(parameters)
    folder = resolved(out)
    shared = run_chapters(folder, ("01", "02"), parameters, force=force)
    each = [
        run_chapters(folder / f"seed-{s}", ("03", "04"), {**parameters, "seed": s}, earlier=shared, force=force)
        for s in range(seeds)
    ]
    runs = {"zero-shot": [shared["02"]], **{METHODS[n]: [run[n] for run in each] for n in ("03", "04")}}
    target = Path(os.path.expanduser(report)) if report else folder / "report"
    write_report(runs, target, command=command)
    written = _with(target, ".md")
    print(f"\n{written.read_text(encoding='utf-8')}")
    return written


def _fits(name: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a notebook has this parameter, or passes it on to its recipe."""
    return name in wanted or ("overrides" in wanted and ("." in name or name in field_names(Experiment(name="fields"))))


def _check_names(parameters: Mapping[str, Any]) -> None:
    """A name that no notebook has would be dropped without a word."""
    notebooks = [notebook_parameters(find_notebook(number)) for number in ("01", *METHODS)]
    for name in parameters:
        if not any(_fits(name, wanted) for wanted in notebooks):
            known = sorted({known for wanted in notebooks for known in wanted})
            raise ConfigError(f"no notebook has a parameter {name!r}; they have {', '.join(known)}, and recipe fields")


def write_report(runs: Mapping[str, Sequence[Folder]], target: Path, *, command: str = "") -> None:
    """Write ``target.md`` (tables, protocol, provenance) and ``target.csv`` (per-class AP) from finished runs."""
    from hpdval.run import read_manifest
    from hpdval.tables import comparison_table, per_class_table, read_runs, results_table, to_markdown

    last = {method: read_result(folders[-1]) for method, folders in runs.items()}
    manifests = [read_manifest(folder) for folders in runs.values() for folder in folders]
    first, newest = last["zero-shot"], manifests[-1]
    images = newest["inputs"]["images"]
    lines = [
        f"# {newest['inputs']['dataset']}",
        "",
        f"{images['train']} training and {images['test']} test images, {len(first['classes'])} classes. "
        f"Mean average precision in percent, all-point, ties grouped; read-out `{first['readout']}`, "
        f"selection: {last['stage 2']['selection']}. Mean (sample standard deviation) over "
        f"{len(runs['stage 1'])} seed(s); zero-shot has none. Chance is prevalence.",
        "",
        to_markdown(results_table(runs)),
        "",
    ]
    lines += [
        "Differences in points with 95 % paired bootstrap intervals over test images; gain: the interval lies above 0 "
        "and all seeds agree, loss: below.",
        "",
        to_markdown(comparison_table({f"{a} against {b}": (runs[a], runs[b]) for a, b in COMPARED})),
        "",
    ]
    lines += [f"- {note}" for note in first["notes"]]
    wall = sum(m["wall_seconds"] for m in manifests)
    lines += _provenance(newest, command, wall)
    with atomic_write(_with(target, ".md"), "w") as file:
        file.write("\n".join(lines) + "\n")
    found = {method: read_runs(folders) for method, folders in runs.items()}
    data = found["zero-shot"]
    scores = {
        f"{method}, seed {seed}" if method != "zero-shot" else method: values
        for method, run in found.items()
        for seed, values in enumerate(run["scores"])
    }
    table = per_class_table(
        data["classes"].tolist(), data["class_counts"], data["targets"], scores, readout=data["readout"]
    )
    with atomic_write(_with(target, ".csv"), "w") as file:
        table.round(4).to_csv(file, index=False, lineterminator="\n")


def _with(target: Path, suffix: str) -> Path:
    """Append a suffix; ``Path.with_suffix`` would make ``x.md`` of ``x-1.5``."""
    return target.with_name(target.name + suffix)


def _provenance(manifest: Mapping[str, Any], command: str, seconds: float) -> list[str]:
    hardware, code = manifest["hardware"], manifest["code"]
    cpu = f"CPU ({hardware['machine']}, {hardware['cores']} cores)"
    device = hardware["cuda"] if manifest["inputs"].get("device") == "cuda" else cpu
    commit = f", commit {code['commit'][:10]}{' with changes' if code['dirty'] else ''}" if code["commit"] else ""
    date = time.strftime("%Y-%m-%d", time.gmtime(manifest["finished"]))
    lines = [f"Made on {date} by hpdval {code['version']}{commit}, torch {manifest['packages']['torch']}, {device}; "
             f"{seconds / 60:.0f} min of runs."]  # fmt: skip
    return [*lines, "", f"    {command}"] if command else lines
