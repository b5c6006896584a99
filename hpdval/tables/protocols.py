"""Our numbers beside published ones, such that no two protocols share a column unmarked (method, section 7)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd

from hpdval.errors import ConfigError
from hpdval.metrics import Evaluation, Protocol
from hpdval.run import read_manifest, read_result
from hpdval.tables.published import published_per_class
from hpdval.tables.runs import Folder, read_runs
from hpdval.tables.scores import COLUMNS, group_names

Result = Folder | Evaluation
Results = Result | Sequence[Result]  # one, or one for each seed


@dataclass(frozen=True)
class Row:
    """A line of the table: means and, over seeds or episodes, sample standard deviations, in percent."""

    method: str
    model: str
    means: dict[str, float]
    deviations: dict[str, float]
    seeds: int | None
    protocol: Protocol
    source: str
    note: str


def protocol_table(
    ours: Mapping[str, Results], published: pd.DataFrame | None = None, *, mark: bool = True, context: bool = False
) -> pd.DataFrame:
    """Return mAP in percent of our methods and of published ones, every number of another protocol with a mark.

    A number whose protocol differs from that of the first row in anything but the test set is followed by letters,
    ``87.88 [a,b]``, and so is any number that was selected on test images.  The letters, and the notes on published
    rows, are explained in ``attrs["footnotes"]``, a list of lines that ``to_markdown`` and ``save_table`` write under
    the table.  Cells are text, so that no number loses its mark; over seeds they read ``mean (sample deviation)``.

    Args:
        ours: label -> a finished run's folder or an ``Evaluation``, or a list of them, one for each seed.
        published: rows of :func:`hpdval.tables.published_results`, all or a choice.
        mark: False refuses numbers that would need a mark, instead of marking them.
        context: True lets in rows of another test set, each marked "for orientation only".

    Raises:
        ConfigError: another test set without ``context``, marks needed without ``mark``, seeds of different protocols.
        RunError: a run is unfinished or damaged, or its seeds were not scored on the same images.
    """
    rows = [_own_row(label, results) for label, results in ours.items()] + published_rows(published)
    if not rows:
        raise ConfigError("no row was given; give ours={label: run folder or evaluation}, published rows, or both")
    return marked_table(rows, mark=mark, context=context)


def marked_table(rows: Sequence[Row], *, mark: bool, context: bool, over: str = "seeds") -> pd.DataFrame:
    """Return the table of :func:`protocol_table` from its rows, of which ours are means ``over`` seeds or episodes."""
    first = rows[0]
    told = [_told(repr(row.method), row.protocol, repr(first.method), first.protocol, context=context) for row in rows]
    if any(told) and not mark:
        raise ConfigError(
            f"{first.method!r} is {first.protocol.how}; rows that need a mark beside it: {_clashes(rows, told)}; give "
            "mark=True, or leave them out, or evaluate under the same read-out"
        )
    order = list(dict.fromkeys(words for several in told for words in several))
    letters = dict(zip(order, ascii_lowercase, strict=False))
    cells = [_cells(row, sorted(letters[w] for w in words)) for row, words in zip(rows, told, strict=True)]
    table = pd.DataFrame(cells)
    table["seeds"] = table["seeds"].astype("Int64")
    table.attrs["footnotes"] = [
        f"protocol of the first row: {first.protocol}" + ("; what differs is marked" if letters else ""),
        *([f"in brackets: sample standard deviation over {over}"] if any(row.deviations for row in rows) else []),
        *(f"{letter}: {words}" for words, letter in letters.items()),
        *(f"{row.method}: {row.note}" for row in rows if row.note),
    ]
    return table


def _clashes(rows: Sequence[Row], told: Sequence[Sequence[str]]) -> str:
    methods: dict[str, list[str]] = {}
    for row, words in zip(rows, told, strict=True):
        methods.setdefault(", ".join(words), []).append(repr(row.method))
    methods.pop("", None)
    return "; ".join(f"{', '.join(names)} ({words})" for words, names in methods.items())


def _told(label: str, protocol: Protocol, first: str, reference: Protocol, *, context: bool) -> list[str]:
    """Return the remarks on a row, or refuse it where its test set is another one."""
    for name, one in ((label, protocol), (first, reference)):
        if not one.dataset:
            raise ConfigError(f"{name} names no data set; give evaluate protocol='voc-lt test, 4952 images' or alike")
    remarks = protocol.remarks(reference)
    if protocol.same_test(reference):
        return remarks
    if not context:
        raise ConfigError(
            f"{label} was measured on {protocol.test_set}, {first} on {reference.test_set}; show them in two tables, "
            "or give context=True, which marks the former as for orientation only"
        )
    return [f"another test set, for orientation only: {protocol.test_set}", *remarks]


_NEEDED = (*COLUMNS, "protocol", "n_images", "readout", "selection", "classes")


def _listed(results: Results) -> list[Result]:
    found = [results] if isinstance(results, str | os.PathLike | Evaluation) else list(results)
    if not found:
        raise ConfigError("no result was given; give a run folder or an evaluation, or one for each seed")
    return found


def _records(label: str, results: Results) -> tuple[list[dict[str, Any]], Protocol]:
    """Return what was measured for each seed, and the one protocol of all."""
    listed = _listed(results)
    folders = [one for one in listed if not isinstance(one, Evaluation)]
    if len(folders) > 1:
        read_runs(folders)  # refuses runs on other images or classes
    records = [one.as_dict() if isinstance(one, Evaluation) else read_result(one, *_NEEDED) for one in listed]
    protocols = [Protocol.of(record) for record in records]
    for record, other in zip(records, protocols, strict=True):
        if other != protocols[0]:
            raise ConfigError(f"seeds of {label} differ in protocol: {protocols[0]}, but {other}; give seeds of one")
        if record["classes"] != records[0]["classes"]:
            raise ConfigError(f"seeds of {label} differ in their classes or their order; give seeds of one data set")
    return records, protocols[0]


def _own_row(label: str, results: Results) -> Row:
    records, protocol = _records(repr(label), results)
    numbers = np.array([[record[name] for name in COLUMNS] for record in records], dtype=np.float64)
    deviations = numbers.std(axis=0, ddof=1).tolist() if len(records) > 1 else []
    return Row(
        method=label,
        model=model_of(_listed(results)[0]),
        means=dict(zip(COLUMNS, numbers.mean(axis=0).tolist(), strict=True)),
        deviations=dict(zip(COLUMNS, deviations, strict=True)) if deviations else {},
        seeds=len(records),
        protocol=protocol,
        source="this work",
        note="; ".join(dict.fromkeys(note for record in records for note in record.get("notes", []))),
    )


def model_of(result: Result) -> str:
    """Return the CLIP of a run, and the image encoder that was trained where it is another than CLIP's."""
    if isinstance(result, Evaluation):
        return "-"
    manifest = read_manifest(result)
    config, kind = manifest["config"], manifest["kind"]
    names = [str(config[name]) for name in ("clip", "pretrained") if config.get(name)]
    trained = kind in ("stage1", "joint") or (kind == "stage2" and manifest["inputs"].get("start") == "stage 1")
    student = config.get("stage1", {}).get("student", "clip")
    backbone = (config.get("rival") or {}).get("backbone")
    if backbone and kind != "zero-shot":
        names.append(f"encoder {backbone}, weights {config['rival'].get('weights') or 'random'}")
    return ", ".join([*names, *([f"student {student}"] if trained and student != "clip" else [])]) or "-"


def published_rows(published: pd.DataFrame | None) -> list[Row]:
    """Return the rows of a table of :func:`hpdval.tables.published_results`."""
    if published is None:
        return []
    records = published.astype(object).where(published.notna(), None).to_dict("records")
    return [
        Row(
            method=record["method"],
            model=", ".join(filter(None, (record["backbone"], record["visual_init"]))),
            means={name: np.nan if record[name] is None else float(record[name]) for name in COLUMNS},
            deviations={},
            seeds=None,
            protocol=Protocol.of({str(name): value for name, value in record.items()}),
            source=record["source"],
            note=record["note"],
        )
        for record in records
    ]


def _cells(row: Row, letters: Sequence[str]) -> dict[str, Any]:
    marks = f" [{','.join(letters)}]" if letters else ""
    numbers = {}
    for name, value in row.means.items():
        spread = f" ({row.deviations[name]:.2f})" if row.deviations else ""
        numbers[name] = "-" if np.isnan(value) else f"{value:.2f}{spread}{marks}"
    fixed = {"seeds": row.seeds, "protocol": row.protocol.how, "source": row.source}
    return {"method": row.method, "model": row.model, **numbers, **fixed}


def per_class_comparison(
    ours: Results, dataset: str, method: str = "HP-DVAL", *, context: bool = False
) -> pd.DataFrame:
    """Return a row for each class: group, training images, our AP, the published one, and ours minus published.

    AP is in percent; over several seeds ours is the mean and ``ours sd`` the sample standard deviation.  Class names
    match without regard to case, blanks and underscores.  ``attrs["footnotes"]`` says how either was measured.

    Args:
        ours: a finished run's folder or an ``Evaluation`` with class names, or a list of them, one for each seed.
        dataset, method: of :func:`hpdval.tables.published_per_class`.
        context: True allows a result on another test set or other training images, and says so in a footnote.

    Raises:
        ConfigError: a class has no partner; another test set, or a class in another group, without ``context``.
    """
    records, protocol = _records("ours", ours)
    published = published_per_class(dataset, method)
    theirs = Protocol.of({str(name): value for name, value in published.attrs.items()})
    remarks = _told(method, theirs, "ours", protocol, context=context)
    classes, counts = records[0]["classes"], records[0]["class_counts"]
    if classes is None:
        raise ConfigError("ours has no class names; give evaluate classes=")
    values = published.iloc[_matched(classes, published["class"].tolist())].reset_index(drop=True)
    groups = group_names(counts)
    moved = [name for name, mine, group in zip(classes, groups, values["group"], strict=True) if mine != group]
    if moved and not context:
        raise ConfigError(
            f"the training images are not those of {dataset}, whose groups differ for {', '.join(moved[:5])}; "
            "load the published list, or give context=True"
        )
    aps = np.array([record["per_class"] for record in records], dtype=np.float64)  # (seeds, C)
    table = pd.DataFrame({"class": classes, "group": groups, "train": counts, "ours": aps.mean(axis=0)})
    if len(aps) > 1:
        table["ours sd"] = aps.std(axis=0, ddof=1)
    table["published"] = values["ap"]
    table["difference"] = table["ours"] - table["published"]
    table.attrs["method"] = method
    table.attrs["footnotes"] = [
        f"ours: {protocol}" + (f", mean of {len(aps)} seeds" if len(aps) > 1 else ""),
        f"published: {method}, {theirs}, {published.attrs['source']}",
        *(["difference: mixes the two protocols above; it is no gain or loss of the method alone"] if remarks else []),
        *([f"in another group than published: {', '.join(moved)}"] if moved else []),
    ]
    return table


def _matched(classes: Sequence[str], published: Sequence[str]) -> list[int]:
    """Return for each of ``classes`` its place in ``published``; every name has exactly one partner."""
    places = {_key(name): place for place, name in enumerate(published)}
    ours = {_key(name) for name in classes}
    alone = [name for name in classes if _key(name) not in places]
    alone += [f"{name} (published)" for name in published if _key(name) not in ours]
    if alone:
        more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
        raise ConfigError(
            f"classes without a partner: {', '.join(alone[:5])}{more}; "
            "names must agree but for case, blanks and underscores"
        )
    return [places[_key(name)] for name in classes]


def _key(name: str) -> str:
    return name.casefold().replace("_", "").replace(" ", "")
