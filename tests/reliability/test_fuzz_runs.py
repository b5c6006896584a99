"""Runs, checkpoints, weights and models of changed files: read right, or refused in one line, and nothing runs."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import Faults
from fuzz import NAMES, Target, answer, broken_bytes, broken_json, broken_lines, fuzz, one_of, parametrize
from hypothesis import strategies as st
from safetensors.torch import save

from hpdval import tables
from hpdval.assets import asset_path
from hpdval.checkpoint import load_checkpoint, load_tensors, save_tensors, tensors_digest
from hpdval.cli import main
from hpdval.comparisons import read_sweep
from hpdval.config import Experiment
from hpdval.data import load_dataset
from hpdval.files import sealed, sha256_file
from hpdval.lab.live.tail import read_record
from hpdval.metrics import evaluate
from hpdval.models.load import load_clip
from hpdval.models.semantic import word_vectors
from hpdval.models.weights import read_state_dict
from hpdval.notebook_parameters import find_notebook
from hpdval.records import read_manifest, read_metrics, read_predictions, read_result
from hpdval.report import build_report
from hpdval.report.gather import gather
from hpdval.run import Run
from hpdval.scoring.dual_view import zero_shot_scorer
from hpdval.scoring.runs import load_run
from hpdval.sweep.grid import read_grid
from hpdval.tables.inventory import find_run, list_runs

pytestmark = pytest.mark.fault

# -- records of runs ---------------------------------------------------------------------------------------------------

IDS, CLASSES, COUNTS = ("a.png", "b.png", "c.png"), ("dog", "cat"), (120, 7)
TARGETS_OF_RUN = np.array([[1, 0], [0, 1], [1, 0]], np.uint8)
SCORES = np.array([[0.9, 0.1], [0.8, 0.7], [0.3, 0.2]], np.float32)
CONFIG = Experiment(name="scenes").as_dict()
NAME = {"config": CONFIG, "inputs": {"dataset": "own", "start": "zero-shot", "images": {"test": 3}}}


def make_run(folder: Path, seed: int = 0) -> Path:
    run = Run(folder, kind="stage1", config={**CONFIG, "seed": seed}, inputs=NAME["inputs"])
    run.log(stage="stage 1", step=1, epoch=0, loss=0.5, lr=1e-3)
    run.log(stage="stage 1", step=2, epoch=1, loss=0.25, lr=1e-4, total=50.0)
    run.save_predictions(IDS, SCORES, TARGETS_OF_RUN, CLASSES)
    result = evaluate(SCORES, TARGETS_OF_RUN, COUNTS, classes=CLASSES, protocol="own test, 3 images")
    about = {
        "method": "stage 1",
        "recipe": "scenes",
        "seed": seed,
        "trained": {"stage 1": {"parameters": 5, "seconds": 1.5}},
    }
    run.finish({**about, "notes": [], **result.as_dict()})
    return folder


@cache
def run_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made = make_run(Path(folder) / "run")
        return {path.name: path.read_bytes() for path in made.iterdir()}


def record(name: str) -> Any:
    return {k: v for k, v in json.loads(run_files()[name]).items() if k != "seal"}


def without(name: str, key: str) -> bytes:
    """A record without what its reader counts on."""
    return json.dumps(sealed({k: v for k, v in record(name).items() if k != key})).encode()


def null_in(name: str, *keys: str) -> bytes:
    """A record with null where its reader counts on a value."""
    whole = part = record(name)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = None
    return json.dumps(whole if name == "result.json" else sealed(whole)).encode()


SWEEP = {
    "title": "a sweep",
    "command": "hpdval sweep",
    "runs": {"one": {"status": "done"}, "two": {"status": "failed", "error": "x"}},
    "comparisons": [
        {
            "name": "alpha",
            "title": "Weight",
            "claim": "",
            "axis": None,
            "reference": "0",
            "cells": [{"label": "0", "value": 0.5, "method": None, "runs": {"0": "one", "1": "two"}}],
        }
    ],
}
NOTEBOOK = {
    "key": "abc",
    "notebook": "05.ipynb",
    "status": "failed",
    "cell": 3,
    "error": "x",
    "seconds": 2.5,
    "parameters": {"seed": 0},
}


def write_run(folder: Path, changed: str, content: bytes) -> Path:
    """Write a finished run of which one file is another; the manifest knows its hash, as if hpdval had written it."""
    folder.mkdir(parents=True)
    files = {**run_files(), changed: content}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if changed not in ("manifest.json", "run.json"):
        manifest = record("manifest.json")
        manifest["files"][changed] = hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    return folder


def record_cases() -> st.SearchStrategy[tuple[str, bytes]]:
    names = ("manifest.json", "manifest.json", "result.json", "result.json", "result.json", "run.json")
    records = st.one_of(*(st.tuples(st.just(name), broken_json(record(name))) for name in names))
    lines = st.tuples(
        st.just("metrics.jsonl"),
        broken_bytes(run_files()["metrics.jsonl"])
        | broken_json({"stage": "stage 1", "step": 1, "epoch": 0, "loss": 0.5, "lr": 1e-3}),
    )
    predictions = st.tuples(
        st.just("predictions.npz"), st.one_of(broken_bytes(run_files()["predictions.npz"]), arrays(), arrays())
    )
    return records | lines | predictions | st.tuples(st.just("notebook.json"), broken_json(NOTEBOOK))


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    """An npz of other arrays than a run's."""
    good = {"ids": np.array(IDS), "classes": np.array(CLASSES), "scores": SCORES, "targets": TARGETS_OF_RUN}
    other = (
        np.zeros(()),
        np.zeros((3, 3)),
        np.zeros((2, 2)),
        np.array([[np.nan, 1.0]] * 3),
        np.zeros((0, 2)),
        SCORES.astype("U5"),
        np.array(IDS)[:2],
        np.array(["a", "a", "b"]),
        np.array(["a", "a"]),
        np.arange(3),
        TARGETS_OF_RUN * 2,
        np.zeros((3, 2), "M8[s]"),
    )
    for name in draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=2)):
        if draw(st.integers(0, 3)):
            good[name] = other[draw(st.integers(0, len(other) - 1))]
        else:
            good.pop(name, None)
    file = io.BytesIO()
    np.savez(file, **good)  # type: ignore[arg-type]
    return file.getvalue()


def check_run(folder: Path, case: tuple[tuple[str, bytes], int]) -> None:
    (changed, content), chosen = case
    run, other = write_run(folder / "run", changed, content), make_other(folder)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    readers = [
        lambda: read_metrics(run),
        lambda: read_result(run),
        lambda: find_run("0123456", folder),
        lambda: gather([run, other]),
        lambda: tables.cost_table({"one": [run, other]}),
        lambda: load_run(run),
        lambda: read_record(run / changed),
    ]
    slow = [
        lambda: list_runs(folder, where="total>1", sort="-minutes"),
        lambda: list_runs(folder),
        lambda: command("runs", folder),
        lambda: tables.results_table({"one": run, "two": [run, other]}),
        lambda: tables.protocol_table({"one": [run, other]}),
        lambda: tables.protocol_table({"one": run, "two": other}),
        lambda: build_report([run, other], folder / "page", figures=(), resamples=2, permutations=2, show=False),
    ]
    for read in (*readers, slow[chosen % len(slow)]):
        answer(read)
    predictions = answer(lambda: read_predictions(run), "predictions.npz", "manifest.json", run)
    if predictions is not None:
        n, c = len(predictions["ids"]), len(predictions["classes"])
        assert predictions["scores"].shape == predictions["targets"].shape == (n, c)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before, "reading changed the run"
    again = {"config": {**CONFIG, "seed": 0}, "inputs": NAME["inputs"]}
    answer(lambda: Run(run, kind="stage1", **again).close(), run)  # which goes on where it was, or refuses


@cache
def _other_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in make_run(Path(folder) / "run", seed=1).iterdir()}


def make_other(folder: Path) -> Path:
    (folder / "other").mkdir()
    for name, data in _other_files().items():
        (folder / "other" / name).write_bytes(data)
    return folder / "other"


def command(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([*map(str, words)]) in (0, 2)


def check_sweep(folder: Path, content: bytes) -> None:
    (folder / "sweep.json").write_bytes(content)
    write_run(folder / "runs" / "one", "result.json", run_files()["result.json"])
    found = answer(lambda: read_sweep(folder), "sweep.json")
    if found is not None:
        assert all(isinstance(cell.label, str) for one in found.comparisons for cell in one.cells)
        assert all(
            path.is_relative_to(folder)
            for one in found.comparisons
            for cell in one.cells
            for path in cell.runs.values()
        )
    answer(lambda: gather([folder]), folder)


# -- checkpoints and weights -------------------------------------------------------------------------------------------

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}
STATE = {"epoch": 3, "classes": ["dog"], "nested": {"x": [1, 2.5, None]}}


@cache
def checkpoint_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder) / "x.safetensors", TENSORS, STATE)
        return (Path(folder) / "x.safetensors").read_bytes()


def safetensors_cases() -> st.SearchStrategy[bytes]:
    """Files with a header that was made by hand: offsets, shapes and types that do not fit, and any length of it."""
    header = {
        "__metadata__": {"hpdval": "{}"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]},
    }
    lengths = st.none() | one_of((0, 1, 8, 100, 2**31, 2**63, 2**64 - 1))
    made = st.tuples(broken_json(header), lengths, st.binary(max_size=64) | st.just(bytes(40)))
    spoilt = made.map(lambda one: (len(one[0]) if one[1] is None else one[1]).to_bytes(8, "little") + one[0] + one[2])
    return spoilt | broken_bytes(checkpoint_bytes()) | st.binary(max_size=60)


def check_checkpoint(folder: Path, content: bytes) -> None:
    path = folder / "checkpoint.safetensors"
    path.write_bytes(content)
    found = answer(lambda: load_tensors(path), path)
    if found is not None:  # it has a checksum, so it is what was saved
        assert tensors_digest(found[0]) == tensors_digest(TENSORS)
        assert found[1] == STATE
    answer(lambda: read_state_dict(path), path)
    (folder / "checkpoint.previous.safetensors").write_bytes(checkpoint_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors, state = load_checkpoint(path) or ({}, {})
    assert tensors_digest(tensors) == tensors_digest(TENSORS)
    assert state == STATE


class Payload:
    """A pickle that makes a folder where it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@cache
def torch_bytes(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "pickle":
        return pickle.dumps(Payload())
    if kind == "legacy":
        torch.save(TENSORS, file, _use_new_zipfile_serialization=False)
    else:
        torch.save(
            {"a": Payload()} if kind == "payload" else {"state_dict": TENSORS} if kind == "nested" else TENSORS, file
        )
    return file.getvalue()


def weight_cases() -> st.SearchStrategy[tuple[str, bytes]]:
    kinds = ("pickle", "legacy", "payload", "nested", "plain")
    data = st.one_of(
        *(broken_bytes(torch_bytes(kind)) | st.just(torch_bytes(kind)) for kind in kinds),
        st.binary(max_size=60),
        safetensors_cases(),
    )
    return st.tuples(st.sampled_from((".pt", ".pth", ".bin", ".safetensors", ".txt", "")), data)


def check_weights(folder: Path, case: tuple[str, bytes]) -> None:
    suffix, content = case
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    found = answer(lambda: read_state_dict(path), path)
    if found is not None:
        assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items())
    assert not Path("executed").exists(), "a payload ran"  # and fuzz() looks for it, too


def vector_cases() -> st.SearchStrategy[bytes]:
    rows = (("dog", "1", "2.5"), ("cat", "-1", "1e-3"), ("tree", "0", "0"))
    return broken_lines(rows, " ") | broken_lines((("3", "2"), *rows), " ")


def check_vectors(folder: Path, content: bytes) -> None:
    (folder / "v.txt").write_bytes(content)
    found = answer(lambda: word_vectors(folder / "v.txt", ["dog", "cat"]), "v.txt")
    if found is not None:
        assert found.dtype == torch.float32
        assert found.shape[0] == 2
        assert bool(torch.isfinite(found).all())


# -- models ------------------------------------------------------------------------------------------------------------


def model_config() -> Any:
    return json.loads(Path(asset_path("scenes_clip.json")).read_text())


def check_model(folder: Path, content: bytes) -> None:
    (folder / "clip.json").write_bytes(content)
    clip = answer(lambda: load_clip(folder / "clip.json"), "clip.json")
    if clip is not None:
        size = clip.image_size
        features = answer(lambda: clip.encode_image(torch.zeros(1, 3, size, size, dtype=torch.uint8)))
        if features is not None:
            assert features.cls.shape == (1, clip.embed_dim)
    (folder / "weights.safetensors").symlink_to(asset_path("scenes_clip.safetensors"))
    answer(
        lambda: load_clip(folder / "clip.json", pretrained=folder / "weights.safetensors"),
        "clip.json",
        "weights.safetensors",
    )


@cache
def scorer_files() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, own = zero_shot_scorer(load_clip("scenes"), CLASSES).state()
    return {name: value.clone() for name, value in tensors.items()}, {
        "kind": "dual-view",
        "encoder": "clip",
        "files": {},
        "classes": list(CLASSES),
        "resize": "squash",
        "method": "zero-shot",
        "precision": "auto",
        "selection": "none",
        **own,
    }


def scorer_cases() -> st.SearchStrategy[bytes]:
    head = {
        "kind": "head",
        "encoder": "clip",
        "classes": ["dog", "cat"],
        "resize": "squash",
        "method": "probe",
        "precision": "auto",
        "selection": "none",
        "head": "classifier",
        "options": {"hidden": 0},
    }
    return broken_json(scorer_files()[1]) | broken_json(head)


ONE_CLASS = (  # and texts of two
    b'{"classes": ["cat"], "resize": "squash", "method": "zero-shot", "precision": "auto", "selection": "none",'
    b' "score": {"alpha": 1.0, "k": 8, "reading": "paper"}, "template": "a photo of a {}."}'
)


def check_scorer(folder: Path, content: bytes) -> None:
    """A model whose state is other than any of ours, under a checksum that fits: that keeps out damage, not malice."""
    run = folder / "run"
    run.mkdir()
    tensors = scorer_files()[0]
    text = content.decode("utf-8", "replace")
    checksum = hashlib.sha256((tensors_digest(tensors) + text).encode()).hexdigest()
    whole = save(dict(tensors), metadata={"hpdval": json.dumps({"sha256": checksum, "state": text})})
    (run / "model.safetensors").write_bytes(whole)
    shutil.copy(asset_path("scenes_clip.json"), run / "clip.json")
    (run / "clip.safetensors").symlink_to(asset_path("scenes_clip.safetensors"))
    files = {path.name: sha256_file(path) for path in run.iterdir()}
    manifest = {**record("manifest.json"), "files": files}
    (run / "manifest.json").write_text(json.dumps(sealed(manifest)))
    scorer = answer(lambda: load_run(run, device="cpu"))
    if scorer is not None:
        images = np.zeros((1, scorer.encoder.image_size, scorer.encoder.image_size, 3), np.uint8)
        scores = answer(lambda: scorer.score_array(images, show=False))
        assert scores is None or scores.shape == (1, len(scorer.classes))


# -- names where a path is wanted --------------------------------------------------------------------------------------


def check_name(folder: Path, case: str) -> None:
    (folder / "t.csv").write_text("path,labels\na.png,\n")
    (folder / "loop").symlink_to("loop")
    for name in (case, f"{folder}/{case}"):
        calls = [
            lambda name=name: load_dataset(name),
            lambda name=name: load_dataset(folder / "t.csv", root=name, classes=("dog",), require_images=False),
            lambda name=name: load_dataset(folder / "t.csv", classes=name, require_images=False),
            lambda name=name: load_dataset(folder / "t.csv", classes=("dog",), test=name, require_images=False),
            lambda name=name: load_dataset(folder, train=f"{name}.csv"),
            lambda name=name: load_dataset("voc-lt", root=name),
            lambda name=name: find_notebook(name),
            lambda name=name: read_grid(name),
            lambda name=name: find_run(name, folder),
            lambda name=name: list_runs(name),
            lambda name=name: read_manifest(name),
            lambda name=name: gather([name]),
            lambda name=name: load_clip(name),
            lambda name=name: load_clip("ViT-B-32", pretrained=name),
            lambda name=name: word_vectors(name, ["dog"]),
        ]
        for call in calls:
            answer(call)


TARGETS = [
    Target(
        "records of a run",
        st.tuples(st.deferred(record_cases), st.integers(0, 6)),
        check_run,
        share=20,
        nightly=800,
        examples=[
            (
                (
                    "result.json",
                    json.dumps({"seed": 0, "trained": {"stage 1": {"parameters": 5, "seconds": 10**400}}}).encode(),
                ),
                0,
            ),
            *(
                (("result.json", null_in("result.json", name)), 5)
                for name in ("selection", "readout", "protocol", "notes")
            ),
            (("manifest.json", null_in("manifest.json", "config", "stage1")), 4),
            (("manifest.json", null_in("manifest.json", "code")), 6),
            *((("manifest.json", without("manifest.json", key)), 6) for key in ("code", "hardware", "wall_seconds")),
        ],
    ),
    Target(
        "sweep.json",
        broken_json(SWEEP),
        check_sweep,
        examples=[json.dumps(SWEEP).encode().replace(b'"label": "0"', b'"label": ["0"]')],
    ),
    Target("checkpoint", st.deferred(safetensors_cases), check_checkpoint, share=40),
    Target("weights", st.deferred(weight_cases), check_weights, share=40),
    Target("word vectors", vector_cases(), check_vectors),
    Target(
        "model configuration",
        broken_json(model_config()),
        check_model,
        examples=[json.dumps(model_config()).encode().replace(b": 64,", size) for size in (b": 1,", b": -1,")],
        share=10,
        nightly=300,
    ),
    Target(
        "state of a scorer",
        st.deferred(scorer_cases),
        check_scorer,
        examples=[
            b'{"encoder": "x", "classes": [], "resize": "", "method": "", "precision": "", "selection": ""}',
            ONE_CLASS,
        ],
        share=10,
        nightly=300,
    ),
    Target("name of a file", one_of(NAMES) | st.text(max_size=6), check_name, share=len(NAMES), nightly=200),
]


@parametrize(TARGETS)
def test_fuzz(target: Target, nightly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fuzz(target, nightly, tmp_path, monkeypatch, faults)
