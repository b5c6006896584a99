"""Published numbers are those of the sources, and no table shows two protocols in one column without a mark."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpdval import tables
from hpdval.data.load import load_dataset
from hpdval.errors import ConfigError, RunError
from hpdval.files import read_json, write_json
from hpdval.metrics import Evaluation, Protocol, evaluate
from hpdval.run import Run

GROUP_SIZES = {"voc-lt": (6, 6, 8), "coco-lt": (22, 33, 25)}
DATASETS = ("voc-lt", "coco-lt", "voc-fewshot-1", "voc-fewshot-5", "coco-fewshot-1", "coco-fewshot-5")
GROUPS = ["head", "medium", "tail"]

# -- the numbers -------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float:
    return float(text) if text else float("nan")


def test_every_published_result_is_here(spec: Path) -> None:
    source = rows_of(spec / "published_results.csv")
    assert len(source) == sum(len(tables.published_results(name)) for name in DATASETS) == 50
    for row in source:
        found = tables.published_results(row["dataset"]).set_index("method").loc[row["method"]]
        np.testing.assert_array_equal(
            found[["total", *GROUPS]].astype(float), [number(row[name]) for name in ("total", *GROUPS)]
        )
        episodes = "mean of 10 episodes"
        assert (found["readout"], found["episodes"]) == (
            ("unknown", 10) if row["protocol"] == episodes else (row["protocol"], 1)
        )
        for name in ("selection", "visual_init", "backbone", "source"):
            assert found[name] == row[name]
        images = "" if pd.isna(found["n_images"]) else f" {found['n_images']}"
        assert f"{found['test_set']}{images}" == row["test_set"]
        assert found["note"] or not row["note"], "a note of the source is never lost"


def test_every_published_ap_is_here(spec: Path) -> None:
    source = rows_of(spec / "published_per_class.csv")
    assert len(source) == 200
    for row in source:
        table = tables.published_per_class(row["dataset"], row["method"])
        found = table.set_index("class").loc[row["class"]]
        assert (found["group"], found["ap"], table.attrs["readout"]) == (
            row["group"],
            float(row["ap"]),
            row["protocol"],
        )


@pytest.mark.parametrize("dataset", GROUP_SIZES)
def test_groups_average_to_the_total_or_a_note_says_to_what(dataset: str) -> None:
    for _, row in tables.published_results(dataset).iterrows():
        mean = float(np.average(row[GROUPS].astype(float), weights=GROUP_SIZES[dataset]))
        told = re.search(r"its groups average to (\S+),", row["note"])
        if told:
            assert mean == pytest.approx(float(told[1]), abs=0.006)
            assert abs(mean - row["total"]) > 0.05
        elif not np.isnan(mean):
            assert mean == pytest.approx(row["total"], abs=0.05)


@pytest.mark.parametrize("dataset", GROUP_SIZES)
def test_ap_by_class_averages_to_the_published_row(dataset: str) -> None:
    table = tables.published_per_class(dataset)
    row = tables.published_results(dataset).set_index("method").loc["HP-DVAL"]
    means = table.groupby("group")["ap"].mean()
    assert table["ap"].mean() == pytest.approx(row["total"], abs=0.006)
    assert means[GROUPS].tolist() == pytest.approx(row[GROUPS].tolist(), abs=0.006)
    assert tuple(table["group"].value_counts()[GROUPS]) == GROUP_SIZES[dataset]
    assert Protocol.of(table.attrs) == Protocol.of({**table.attrs, **row.to_dict(), "dataset": dataset})


@pytest.mark.parametrize(("dataset", "prefix"), [("voc-lt", "voc"), ("coco-lt", "coco")])
def test_the_published_lists_are_the_published_data_set(shared_data: Path, dataset: str, prefix: str) -> None:
    """Name, number of test images, classes and groups agree: nothing is refused, and only the selection is marked."""
    splits = shared_data / "splits"
    data = load_dataset(splits / f"{prefix}_lt_train.txt", test=f"{prefix}_lt_test.txt", require_images=False)
    about = {"classes": data.classes, "protocol": f"{data.name} test, {len(data.test)} images", "readout": "l2"}
    mine = evaluate(data.test.targets, data.test.targets, data.class_counts, **about)
    table = tables.per_class_comparison(mine, dataset)
    assert [f"{count} {group}" for group, count in table["group"].value_counts()[GROUPS].items()] == [
        f"{size} {group}" for size, group in zip(GROUP_SIZES[dataset], GROUPS, strict=True)
    ]
    notes = tables.protocol_table({"mine": mine}, tables.published_results(dataset).tail(1)).attrs["footnotes"]
    assert [note for note in notes if note[1] == ":"] == ["a: selected on the test images"]


def test_what_is_not_known_is_refused_with_what_is() -> None:
    assert tables.PUBLISHED == DATASETS
    with pytest.raises(ConfigError, match="'voc'; choose one of voc-lt, coco-lt, voc-fewshot-1"):
        tables.published_results("voc")
    with pytest.raises(ConfigError, match=r"'voc-fewshot-1'; choose one of voc-lt, coco-lt$"):
        tables.published_per_class("voc-fewshot-1")
    with pytest.raises(ConfigError, match=r"'LMPT'; choose one of HP-DVAL, Zero-shot CLIP$"):
        tables.published_per_class("voc-lt", "LMPT")


# -- protocols ---------------------------------------------------------------------------------------------------------

TABLE = tables.published_per_class("voc-lt")
CLASSES = tuple(TABLE["class"])
COUNTS = TABLE["group"].map({"head": 200, "medium": 40, "tail": 6}).to_numpy()
RNG = np.random.default_rng(0)
TARGETS = (RNG.random((4952, 20)) < 0.1).astype(np.uint8)
VOC: dict[str, Any] = {"classes": CLASSES, "protocol": "voc_lt_train test, 4952 images", "readout": "l2"}


def scores(seed: int = 0) -> np.ndarray:
    return (TARGETS + np.random.default_rng(seed).normal(size=TARGETS.shape)).astype(np.float32)


def result(seed: int = 0, **changes: Any) -> Evaluation:
    return evaluate(scores(seed), TARGETS, COUNTS, **{**VOC, **changes})


def finished(folder: Path, seed: int) -> Path:
    """A finished run as ``hpdval.score_run`` leaves it."""
    run = Run(folder, kind="test", config={"clip": "ViT-B-16", "pretrained": "openai"})
    run.save_predictions([str(i) for i in range(len(TARGETS))], scores(seed), TARGETS, CLASSES)
    run.finish({"seed": seed, "notes": ["skipped in train: a.jpg"], **result(seed).as_dict()})
    return folder


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("none (last epoch)", "nothing selected"),
        ("none (zero-shot)", "nothing selected"),
        ("not stated", "selection not stated"),
        ("best epoch on validation", "selected on the validation images"),
        ("best on test", "selected on the test images"),
        ("best epoch on TEST images", "selected on the test images"),
        ("best on the test set", "selected on the test images"),
        ("by eye", "by eye"),
    ],
)
def test_selection_rules_are_told_apart(text: str, kind: str) -> None:
    assert Protocol.of(result(selection=text)).selection == kind


def test_a_protocol_is_the_same_from_an_evaluation_a_run_and_a_published_row(tmp_path: Path) -> None:
    mine = Protocol.of(result(selection="best epoch on TEST images"))
    row = tables.published_results("voc-lt").set_index("method", drop=False).loc["HP-DVAL"]
    assert mine == Protocol.of(row.to_dict())
    assert str(mine) == "voc-lt test, 4952 images, read-out l2, selected on the test images"
    stored = read_json(finished(tmp_path, 0) / "result.json")
    assert Protocol.of(stored) == Protocol.of(result())


def test_classes_left_out_are_part_of_the_protocol_by_name() -> None:
    targets = TARGETS.copy()
    targets[:, [3, 7]] = 0
    left_out = evaluate(scores(), targets, COUNTS, **VOC)
    assert Protocol.of(left_out).excluded == tuple(sorted((CLASSES[3], CLASSES[7])))
    told = Protocol.of(left_out).remarks(Protocol.of(result()))
    assert told == [f"without {', '.join(sorted((CLASSES[3], CLASSES[7])))} (no test positive)"]
    assert Protocol.of(result()).remarks(Protocol.of(left_out)) == ["all classes"]


# -- the table ---------------------------------------------------------------------------------------------------------


def test_one_protocol_needs_no_mark() -> None:
    table = tables.protocol_table({"a": result(0), "b": result(1)}, mark=False)
    assert table["total"].tolist() == [f"{result(s).total:.2f}" for s in (0, 1)]
    assert table.attrs["footnotes"] == [
        "protocol of the first row: voc-lt test, 4952 images, read-out l2, nothing selected"
    ]


def test_numbers_of_another_protocol_are_marked_and_explained() -> None:
    published = tables.published_results("voc-lt")
    table = tables.protocol_table({"mine": result()}, published).set_index("method")
    letters = dict(note.split(": ", 1) for note in table.attrs["footnotes"] if re.match("[a-z]: ", note))
    told = {
        method: [letters[letter] for letter in re.findall(r"\b[a-z]\b", row["total"])]
        for method, row in table.iterrows()
    }
    assert told["mine"] == []
    assert told["HP-DVAL"] == ["selected on the test images"]
    assert told["Zero-shot CLIP"] == ["read-out softmax"]
    assert sorted(told["LMPT"]) == ["read-out softmax", "selected on the test images"]
    assert sorted(told["ERM"]) == ["read-out raw", "selection not stated"]
    assert sorted(told["DP-VLPA"]) == ["read-out not known", "selection not stated"]
    for name in GROUPS:  # every number, not only the total, has the marks of its row
        marks = [re.findall(r"\[.*\]", cell) for cell in table[name] if cell != "-"]
        assert marks == [re.findall(r"\[.*\]", row["total"]) for _, row in table.iterrows() if row[name] != "-"]
    assert [float(cell.split()[0]) for cell in table["total"].iloc[1:]] == published["total"].tolist()
    assert "HP-DVAL: medium and tail are those of the released log" in "\n".join(table.attrs["footnotes"])


def test_without_marks_two_protocols_are_refused() -> None:
    published = tables.published_results("voc-lt").query("method in ('LMPT', 'ERM')")
    with pytest.raises(ConfigError) as told:
        tables.protocol_table({"mine": result()}, published, mark=False)
    assert str(told.value) == (
        "'mine' is read-out l2, nothing selected; rows that need a mark beside it: 'ERM' (read-out raw, selection not "
        "stated); 'LMPT' (read-out softmax, selected on the test images); give mark=True, or leave them out, or "
        "evaluate under the same read-out"
    )
    with pytest.raises(ConfigError, match=r"'b' \(read-out raw\)"):
        tables.protocol_table({"a": result(), "b": result(readout="raw")}, mark=False)


def test_what_was_selected_on_test_images_is_marked_even_in_the_first_row() -> None:
    chosen = result(selection="best epoch on TEST images")
    table = tables.protocol_table({"released": chosen, "mine": result()})
    assert table["total"][0].endswith(" [a]")
    assert "a: selected on the test images" in table.attrs["footnotes"]
    with pytest.raises(ConfigError, match="'released'"):
        tables.protocol_table({"released": chosen}, mark=False)


@pytest.mark.parametrize(
    "other", ["scenes-lt test, 4952 images", "coco_lt_train test, 4952 images", "voc_lt_train val, 4952 images"]
)
def test_another_test_set_is_refused_or_marked_as_orientation(other: str) -> None:
    published = tables.published_results("voc-lt")
    with pytest.raises(ConfigError, match=r"two tables, or give context=True"):
        tables.protocol_table({"mine": result(protocol=other)}, published)
    table = tables.protocol_table({"mine": result(protocol=other)}, published, context=True)
    assert all("a" in re.findall(r"\b[a-z]\b", cell) for cell in table["total"][1:])
    assert "a: another test set, for orientation only: voc-lt test, 4952 images" in table.attrs["footnotes"]


def test_another_number_of_test_images_is_another_test_set() -> None:
    fewer = evaluate(scores()[:4950], TARGETS[:4950], COUNTS, **VOC)
    with pytest.raises(ConfigError, match="4952 images, 'mine' on voc-lt test, 4950 images"):
        tables.protocol_table({"mine": fewer}, tables.published_results("voc-lt"))


def test_a_result_that_names_no_test_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mine' names no data set"):
        tables.protocol_table({"mine": result(protocol="")}, tables.published_results("voc-lt"))
    with pytest.raises(ConfigError, match="no row was given"):
        tables.protocol_table({})
    with pytest.raises(ConfigError, match="no result was given"):
        tables.protocol_table({"mine": []})


def test_runs_of_several_seeds_give_mean_and_deviation(tmp_path: Path) -> None:
    runs = [finished(tmp_path / str(seed), seed) for seed in range(3)]
    row = tables.protocol_table({"mine": runs}).iloc[0]
    totals = [result(seed).total for seed in range(3)]
    assert row["total"] == f"{np.mean(totals):.2f} ({np.std(totals, ddof=1):.2f})"
    assert (row["seeds"], row["model"], row["source"]) == (3, "ViT-B-16, openai", "this work")
    with pytest.raises(ConfigError, match="seeds of 'mine' differ in protocol"):
        tables.protocol_table({"mine": [runs[0], result(readout="raw")]})
    record = read_json(runs[0] / "result.json")
    write_json(runs[0] / "result.json", {**record, "total": 99.0})
    with pytest.raises(RunError, match="damaged or was altered"):
        tables.protocol_table({"mine": runs[0]})


@pytest.mark.parametrize(
    ("kind", "start", "model"),
    [
        ("zero-shot", "zero-shot", "ViT-B-16"),
        ("stage1", "zero-shot", "ViT-B-16, student vit_base"),
        ("stage2", "stage 1", "ViT-B-16, student vit_base"),
        ("stage2", "zero-shot, both views", "ViT-B-16"),
    ],
)
def test_the_image_encoder_that_was_used_is_named(tmp_path: Path, kind: str, start: str, model: str) -> None:
    config = {"clip": "ViT-B-16", "pretrained": None, "stage1": {"student": "vit_base"}}
    Run(tmp_path, kind=kind, config=config, inputs={"start": start}).finish(result().as_dict())
    assert tables.protocol_table({"mine": tmp_path})["model"].tolist() == [model]


def test_notes_of_a_run_and_marks_reach_every_file(tmp_path: Path) -> None:
    table = tables.protocol_table(
        {"mine": finished(tmp_path / "run", 0)}, tables.published_results("voc-lt").query("method == 'LMPT'")
    )
    shown = tables.save_table(table, tmp_path, "x")
    marked, note = "87.88 [a,b]", "mine: skipped in train: a.jpg"
    text = (tmp_path / "tables" / "x.md").read_text(encoding="utf-8")
    for written in (text, repr(shown), shown._repr_html_()):
        assert marked in written
        assert note in written
        assert "a: read-out softmax" in written
    back = pd.read_csv(tmp_path / "tables" / "x.csv")  # has no footnotes, but every row says its protocol
    assert back["total"][1] == marked
    assert back["protocol"][1] == "read-out softmax, selected on the test images"


# -- class by class ----------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_in_our_order() -> None:
    order = RNG.permutation(20)
    spelled = {"tvmonitor": "tv monitor", "diningtable": "Dining_Table"}
    names = [spelled.get(CLASSES[i], CLASSES[i]) for i in order]
    options = {**VOC, "classes": names}
    runs = [evaluate(scores(s)[:, order], TARGETS[:, order], COUNTS[order], **options) for s in (0, 1)]
    table = tables.per_class_comparison(runs, "voc-lt")
    assert table["class"].tolist() == names
    assert table["published"].tolist() == [TABLE["ap"][i] for i in order]
    both = np.array([result(s).per_class[order] for s in (0, 1)])
    np.testing.assert_allclose(table["ours"], both.mean(0))
    np.testing.assert_allclose(table["ours sd"], both.std(0, ddof=1))
    np.testing.assert_allclose(table["difference"], table["ours"] - table["published"])
    assert table["train"].tolist() == COUNTS[order].tolist()
    assert "read-out l2, selected on the test images" in table.attrs["footnotes"][1]


def test_another_methods_classes_and_protocol_are_its_own(tmp_path: Path) -> None:
    table = tables.per_class_comparison(finished(tmp_path, 0), "voc-lt", "Zero-shot CLIP")
    assert "ours sd" not in table
    assert table["published"].mean() == pytest.approx(75.26, abs=0.01)
    assert len(table.attrs["footnotes"]) == 2, "one protocol: the difference needs no warning"
    raw = tables.per_class_comparison(result(readout="raw"), "voc-lt", "Zero-shot CLIP")
    assert "mixes the two protocols" in raw.attrs["footnotes"][-1]


def test_comparisons_class_by_class_that_make_no_sense_are_refused() -> None:
    renamed = ("aircraft" if name == "aeroplane" else name for name in CLASSES)
    with pytest.raises(ConfigError, match=r"without a partner: aircraft, aeroplane \(published\); names must"):
        tables.per_class_comparison(result(classes=tuple(renamed)), "voc-lt")
    with pytest.raises(ConfigError, match="differ in their classes or their order"):
        tables.per_class_comparison([result(), result(classes=CLASSES[::-1])], "voc-lt")
    with pytest.raises(ConfigError, match="no class names"):
        tables.per_class_comparison(result(classes=None), "voc-lt")
    with pytest.raises(ConfigError, match="HP-DVAL was measured on voc-lt test, 4952 images, ours on my photos test"):
        tables.per_class_comparison(result(protocol="my photos test, 4952 images"), "voc-lt")
    moved = replace(result(), class_counts=(5, *COUNTS[1:].tolist()))
    with pytest.raises(ConfigError, match=f"whose groups differ for {CLASSES[0]}"):
        tables.per_class_comparison(moved, "voc-lt")
    table = tables.per_class_comparison(moved, "voc-lt", context=True)
    assert table.attrs["footnotes"][-1] == f"in another group than published: {CLASSES[0]}"
