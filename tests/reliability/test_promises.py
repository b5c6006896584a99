"""The page of promises names tests that exist, and those promises that no test of a single module holds."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_rivals import RIVALS, recipe, said
from toys import CLASSES, coloured_set, tiny

import hpdval
from hpdval.data.dataset import Dataset
from hpdval.metrics import average_precision
from hpdval.models import Clip
from hpdval.models.numeric import AUTOCAST
from hpdval.run import read_manifest, read_predictions
from hpdval.scoring import load_run, zero_shot_scorer
from hpdval.training.rivals import train_rival

PAGE = ROOT / "docs" / "reliability.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!promise|-)", line)]


@cache
def names_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=[line.split("|")[1].strip()[:60] for line in ROWS])
def test_every_promise_is_held_by_tests_that_exist(row: str) -> None:
    _, promise, held, _ = re.split(r"(?<!\\)\|", row)
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", held)
    assert named, f"nothing holds {promise!r}"
    assert re.sub(r"`[^`]+`|[\s,]", "", held) == "", "only tests stand in the second column"
    for file, name in named:
        assert (ROOT / file).is_file(), file
        found = names_of(ROOT / file)
        assert name in found if name else any(each.startswith("test_") for each in found), (file, name)


def test_no_file_of_faults_is_missing_from_the_page() -> None:
    here = {f"tests/reliability/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    assert here <= set(re.findall(r"`(tests/reliability/\w+\.py)", PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def colours() -> Dataset:
    data = coloured_set(24, 41)
    lines = said(data.train.targets)
    return replace(data, train=replace(data.train, captions=lambda i: lines[i]))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return tiny(tmp_path_factory.mktemp("tiny"))


def test_the_batch_size_changes_no_result(colours: Dataset, clip: Clip) -> None:
    """Sums in another order may differ in the last bit, and never by enough to change a rank here."""
    scorer = zero_shot_scorer(clip, CLASSES)
    whole, *others = (scorer.score(colours.test, show=False, batch_size=size) for size in (64, 1, 7, 40))
    for scores in others:
        np.testing.assert_allclose(scores, whole, rtol=0, atol=2e-6)
        np.testing.assert_allclose(
            average_precision(scores, colours.test.targets), average_precision(whole, colours.test.targets), atol=1e-12
        )


@pytest.mark.parametrize("name", list(RIVALS))
def test_scores_are_float32_in_every_mode(tmp_path: Path, colours: Dataset, clip: Clip, name: str) -> None:
    """Every rival trains, scores and comes back in half precision; what is stored is float32 and finite."""
    trains = bool(RIVALS[name][1])
    changes = {"rival.precision": "bfloat16", **({"rival.epochs": 1} if trains else {})}
    scorer = train_rival(colours, recipe(name, **changes), run=tmp_path, clip=clip, device="cpu", show=False)
    stored = read_predictions(tmp_path)["scores"]
    assert scorer.precision == "bfloat16"
    assert stored.dtype == np.float32
    assert np.isfinite(stored).all()
    assert np.array_equal(load_run(tmp_path, device="cpu").score(colours.test, show=False), stored)
    for precision in AUTOCAST:
        scores = scorer.score(colours.test, precision=precision, show=False)
        assert scores.dtype == np.float32, precision
        assert np.isfinite(scores).all(), precision


def test_a_manifest_says_what_made_the_run(tmp_path: Path, colours: Dataset, clip: Clip) -> None:
    train_rival(colours, recipe("linear-probe", **{"rival.epochs": 1}), run=tmp_path, clip=clip, show=False)
    manifest = read_manifest(tmp_path)
    assert manifest["code"]["version"] == hpdval.__version__
    assert {"commit", "dirty"} < set(manifest["code"])
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", manifest["code"]["commit"])
        assert isinstance(manifest["code"]["dirty"], bool)
    assert manifest["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert manifest["packages"]["numpy"] == np.__version__
    assert manifest["hardware"]["cores"] == os.cpu_count()
    assert manifest["config"]["seed"] == 0
    inputs = manifest["inputs"]
    hashes = [inputs["weights"], *inputs["labels"].values(), *inputs["pixels"].values()]
    assert len(hashes) == 7
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes)
    assert 0 < manifest["wall_seconds"] <= manifest["finished"] - manifest["started"] + 1e-2
    assert set(manifest["files"]) >= {"predictions.npz", "result.json", "metrics.jsonl", "model.safetensors"}
    other = colours.train.subset(range(23))
    changed = Dataset(
        name="colours",
        classes=CLASSES,
        train=other,
        val=colours.val,
        test=colours.test,
        class_counts=colours.class_counts,
    )
    with pytest.raises(hpdval.HpdvalError, match="holds another run"):  # the hash of the data is in the key
        train_rival(changed, recipe("linear-probe", **{"rival.epochs": 1}), run=tmp_path, clip=clip, show=False)
