"""From folders to comparisons: what a sweep recorded, and finished runs laid side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpdval.comparisons import SWEEP, Cell, Comparison, method_folder, read_sweep
from hpdval.errors import RunError
from hpdval.run import read_manifest, read_result

Folder = str | os.PathLike[str]
ZERO_SHOT = "zero-shot"  # the method that trains nothing


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a report is about."""

    title: str
    commands: tuple[str, ...]  # of the sweeps, for the reader who wants to repeat them
    comparisons: tuple[Comparison, ...]  # names are distinct and fit for files
    missing: tuple[str, ...]  # one line for each run that is not finished


def gather(sources: Sequence[Folder]) -> Gathered:
    """Return the comparisons of sweeps as they were recorded, and one named ``runs`` of all other finished runs.

    Raises:
        RunError: nothing was given, a folder is neither a sweep nor a finished run, or no run is finished.
    """
    if not sources:
        raise RunError("no runs were given; give folders of sweeps or of finished runs")
    sweeps, plain = [], []
    for source in map(Path, sources):
        if os.path.exists(source / SWEEP):
            sweeps.append(read_sweep(source))
        else:
            plain += _method_folders(source)
    found = [one for sweep in sweeps for one in sweep.comparisons]
    missing = [line for sweep in sweeps for line in sweep.missing]
    if plain:
        found.append(compare_runs(plain))
    kept, taken = [], {"summary", "provenance"}
    for one in found:
        cells = tuple(cell for cell in one.cells if cell.runs)
        if cells:
            kept.append(_renamed(one, cells, taken))
        else:
            missing.append(f"{one.name}: no run of this comparison is finished")
    if not kept:
        raise RunError(f"none of the runs in {', '.join(map(str, sources))} is finished; finish them first")
    return Gathered(
        title=" / ".join(dict.fromkeys(sweep.title for sweep in sweeps)) or "Finished runs",
        commands=tuple(dict.fromkeys(sweep.command for sweep in sweeps if sweep.command)),
        comparisons=tuple(kept),
        missing=tuple(dict.fromkeys(missing)),
    )


def _method_folders(source: Path) -> list[Path]:
    """Return the run folders that a notebook made, or the folder itself."""
    methods = read_result(source).get("folders", [None])
    return [method_folder(source, method) for method in methods]


def _renamed(one: Comparison, cells: tuple[Cell, ...], taken: set[str]) -> Comparison:
    """Give a comparison a name that is a file name and that no other has."""
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", one.name).strip("-.") or "comparison"
    names = (stem if i == 1 else f"{stem}-{i}" for i in range(1, len(taken) + 2))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return replace(one, name=name, cells=cells, title=one.title or one.name, reference=one.reference or cells[0].label)


def compare_runs(folders: Sequence[Folder]) -> Comparison:
    """Return finished runs as one comparison: those that differ in nothing but the seed make a cell.

    A cell is named after its method and, where a method has several, the fields of the configuration that tell them
    apart.  The reference is zero-shot, or else the first.

    Raises:
        RunError: a run is unfinished, or two differ in nothing at all.
    """
    groups: dict[str, dict[int, Path]] = {}
    facts: dict[str, tuple[str, dict[str, Any]]] = {}  # method and configuration
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        manifest, result = read_manifest(folder), read_result(folder)
        config = leaves(manifest["config"])
        seed = int(result.get("seed", config.get("seed", 0)))
        config.pop("seed", None)
        method = str(result.get("method", manifest["kind"]))
        key = repr((method, manifest["kind"], sorted(config.items())))
        facts[key] = (method, config)
        earlier = groups.setdefault(key, {}).setdefault(seed, folder)
        if earlier != folder:
            raise RunError(f"{earlier} and {folder} are the same run twice ({method}, seed {seed}); give one of them")
    names = _labels(list(facts.values()))
    cells = tuple(Cell(label=name, runs=runs) for name, runs in zip(names, groups.values(), strict=True))
    untrained = [name for name, (method, _) in zip(names, facts.values(), strict=True) if method == ZERO_SHOT]
    return Comparison(name="runs", title="Finished runs", cells=cells, reference=(untrained or names)[0])


def _labels(facts: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return a label for each (method, configuration): no longer than it takes to tell them apart.

    >>> _labels([("stage 1", {"lr": 0.1, "k": 1}), ("stage 1", {"lr": 0.2, "k": 1}), ("zero-shot", {"lr": 0.1})])
    ['stage 1, lr=0.1', 'stage 1, lr=0.2', 'zero-shot']
    """
    labels = []
    for method, config in facts:
        peers = [other for name, other in facts if name == method]
        fields = sorted(f for f in {f for peer in peers for f in peer} if len({repr(p.get(f)) for p in peers}) > 1)
        if len({repr(peer.get("name")) for peer in peers}) == len(peers) > 1:
            fields = ["name"]  # recipes have names, which say more than their fields
        words = [str(config.get(f)) if f == "name" else f"{f}={config.get(f)}" for f in fields]
        labels.append(", ".join([method, *words]))
    return [label if labels.count(label) == 1 else f"{label} ({i})" for i, label in enumerate(labels, 1)]


def leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted names.

    >>> leaves({"seed": 0, "stage1": {"lr": 0.1}})
    {'seed': 0, 'stage1.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= leaves(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return found
