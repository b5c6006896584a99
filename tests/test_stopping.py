"""A stop asked for by a file, after a whole update; the continued run has the bits of one never stopped."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import LineBatches, run_line
from toys import CLASSES, TINY, coloured, recipe

import hpdval
from hpdval.config import TrainingConfig
from hpdval.data.dataset import Dataset
from hpdval.errors import RunError
from hpdval.files import read_json
from hpdval.models import load_clip
from hpdval.run import Run, read_manifest, read_metrics
from hpdval.scoring import Scorer
from hpdval.stopping import REQUEST, Interrupted, request_stop, take_request
from hpdval.training import loop
from hpdval.training.batches import Batch

CONFIG = TrainingConfig(epochs=4, batch_size=2, lr=0.05)  # 20 updates of 10 images


class Asking(LineBatches):
    """Batches of the line; another process asks for a stop of ``folder`` while batch ``number`` is made."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(10)
        self.folder, self.number = folder, number

    def __call__(self, indices: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        for batch in super().__call__(indices, epoch):
            if len(self.asked) == self.number:
                request_stop(self.folder)
            yield batch


@pytest.fixture
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("_look_always")
@pytest.mark.parametrize("update", [1, 5, 7, 20])
def test_stopped_on_request_and_continued_no_bit_differs(tmp_path: Path, update: int) -> None:
    whole = run_line(tmp_path / "whole", LineBatches(10), CONFIG)
    said = f"^line stopped on request after update {update} of 20; run the same command again to continue$"
    with pytest.raises(Interrupted, match=said):
        run_line(tmp_path / "cut", Asking(tmp_path / "cut", update), CONFIG)
    assert not (tmp_path / "cut" / REQUEST).exists(), "obeyed, so it is gone"
    record = read_json(tmp_path / "cut" / "run.json")
    assert record["ended"].startswith(f"Interrupted: line stopped on request after update {update} of 20")
    rest = LineBatches(10)
    resumed = run_line(tmp_path / "cut", rest, CONFIG)
    assert len(rest.asked) == 20 - update, "nothing is repeated and nothing left out"
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert torch.equal(resumed.layer.bias, whole.layer.bias)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    assert "ended" not in read_json(tmp_path / "cut" / "run.json")


@pytest.mark.usefixtures("_look_always")
def test_a_request_made_before_the_run_was_opened_stops_nothing(tmp_path: Path) -> None:
    request_stop(tmp_path)
    run_line(tmp_path, LineBatches(10), CONFIG)
    assert len(read_metrics(tmp_path)) == 20
    assert not (tmp_path / REQUEST).exists()


@pytest.mark.usefixtures("_look_always")
def test_a_request_to_another_open_run_of_the_process_counts_too(tmp_path: Path) -> None:
    """A notebook has a run of its own around those that it trains."""
    with Run(tmp_path / "notebook", kind="notebook", config={}), pytest.raises(Interrupted):
        run_line(tmp_path / "stage", Asking(tmp_path / "notebook", 3), CONFIG)
    assert not (tmp_path / "notebook" / REQUEST).exists()


def test_the_loop_looks_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(loop, "take_request", lambda: bool(looks.append(time.monotonic())))
    began = time.monotonic()
    run_line(tmp_path, LineBatches(10), dataclasses.replace(CONFIG, epochs=20))
    assert 1 <= len(looks) <= 1 + (time.monotonic() - began) / loop.LOOK_SECONDS
    assert all(later - earlier >= 0.99 for earlier, later in pairwise(looks))


def test_nobody_answers_for_a_run_that_is_closed_or_gone(tmp_path: Path) -> None:
    Run(tmp_path / "closed", kind="test", config={}).close()
    Run(tmp_path / "forgotten", kind="test", config={})
    for name in ("closed", "forgotten"):
        request_stop(tmp_path / name)
    assert not take_request()
    with Run(tmp_path / "open", kind="test", config={}):
        assert not take_request()
        request_stop(tmp_path / "open")
        assert take_request()
        assert not take_request(), "a request is obeyed once"
        request_stop(tmp_path / "open")
    assert not (tmp_path / "open" / REQUEST).exists(), "what nobody can answer any more is taken away"


def test_a_folder_that_cannot_be_asked_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"could not ask for a stop in .*missing"):
        request_stop(tmp_path / "missing")


def test_the_manifest_does_not_list_what_is_still_written(tmp_path: Path) -> None:
    with Run(tmp_path, kind="test", config={}) as run:
        for name in (REQUEST, "train.json", "train.log", "train.lock", "kept.txt"):
            (tmp_path / name).touch()
        run.finish()
    assert set(read_manifest(tmp_path)["files"]) == {"run.json", "kept.txt"}


def test_asked_during_an_evaluation_that_run_is_finished_and_the_next_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    clip, train, test = load_clip(tmp_path / "tiny.json", seed=0), coloured(20, 1), coloured(9, 2)
    counts = train.targets.sum(0).astype(np.int64)
    val = train.subset([])
    data = Dataset(name="colours", classes=CLASSES, train=train, val=val, test=test, class_counts=counts)
    score = Scorer.score

    def asked_meanwhile(self: Scorer, *arguments: object, **options: object) -> np.ndarray:
        request_stop(tmp_path / "zero-shot")
        return score(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Scorer, "score", asked_meanwhile)
    with pytest.raises(Interrupted, match=r"^stopped on request after zero-shot, which is done; run the same command"):
        hpdval.train(data, recipe(), run=tmp_path, clip=clip, show=False)
    assert read_manifest(tmp_path / "zero-shot")["status"] == "done"
    assert not (tmp_path / "stage1").exists()
