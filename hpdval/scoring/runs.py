"""Scorers and runs: what a run depends on, scoring its test images, finishing it, and using what it left."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpdval.checkpoint import load_tensors
from hpdval.config import Experiment
from hpdval.data.captions import caption_digest
from hpdval.data.dataset import Dataset, Split
from hpdval.data.store import ImageStore
from hpdval.distributed import FollowedRun, asked_to_stop, everyones, follow, rank, same_error
from hpdval.errors import HpdvalError, RunError, one_line
from hpdval.files import check_form, digest, sha256_file, write_json
from hpdval.metrics import Evaluation, evaluate
from hpdval.models import Clip, Encoder, load_clip
from hpdval.models.cnn import load_cnn
from hpdval.models.numeric import numeric_mode, resolve_device
from hpdval.models.semantic import word_vectors
from hpdval.models.student import make_student
from hpdval.rival_configs import SOURCES, CprflConfig, LmptConfig, TunedConfig
from hpdval.run import Run, read_manifest, read_predictions, read_result, run_key
from hpdval.scoring.dual_view import DualViewScorer
from hpdval.scoring.head import HeadScorer
from hpdval.scoring.scorer import Scorer
from hpdval.stopping import Interrupted

DIGESTED = 1 << 22  # labels digested at once
ENCODERS: dict[str, Callable[..., Any]] = {"clip": load_clip, "cnn": load_cnn}  # by the stem of their files
STATE: Any = {  # of every scorer; what a kind has of its own, that checks
    **{f"{name}?": str for name in ("encoder", "kind")},
    **dict.fromkeys(("resize", "method", "precision", "selection"), str),
    "classes": [str],
    "files?": {...: str},
}
SCORERS: dict[str, Any] = {scorer.kind: scorer for scorer in (DualViewScorer, HeadScorer)}


def load_run(folder: str | os.PathLike[str], *, device: str | torch.device = "auto") -> Scorer:
    """Return the scorer of a finished run; its files are checked against the manifest.

    Raises:
        RunError: the run is unfinished, holds no model, or a file was altered.
    """
    folder = Path(folder)
    files = read_manifest(folder)["files"]
    stem = next((stem for stem in ENCODERS if f"{stem}.json" in files), "clip")
    for name in (f"{stem}.json", f"{stem}.safetensors", "model.safetensors"):
        if name not in files or not (folder / name).exists():
            raise RunError(f"{folder} holds no model ({name} is missing); runs of a method and zero-shot do")
        if sha256_file(folder / name) != files[name]:
            raise RunError(f"{folder / name} differs from its hash in the manifest; it is damaged or was altered")
    scorer = load_scorer(folder, device=device)
    scorer.trained = read_result(folder).get("trained") if "result.json" in files else None
    return scorer


def load_scorer(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Scorer:
    """Return the scorer that :meth:`Scorer.save` wrote to ``folder``.

    Raises:
        RunError: a file is absent, damaged or was altered.
    """
    folder = Path(folder)
    where = resolve_device(device)
    tensors, state = load_tensors(folder / "model.safetensors")
    tensors = {name: value.to(where) for name, value in tensors.items()}
    check_form(state, STATE, f"{folder / 'model.safetensors'}, its state")
    for name, known in state.get("files", {}).items():  # a model saved by an older version does not know them
        if not (folder / name).exists() or sha256_file(folder / name) != known:
            raise RunError(f"{folder / name} is not the one that model.safetensors was saved with; restore it")
    stem, kind = state.get("encoder") or "clip", state.get("kind") or DualViewScorer.kind
    if stem not in ENCODERS or kind not in SCORERS:
        raise RunError(f"{folder / 'model.safetensors'} is of a {kind!r} scorer on {stem!r}, which this version lacks")
    files = str(folder / f"{stem}.json"), str(folder / f"{stem}.safetensors")
    encoder: Encoder = ENCODERS[stem](files[0], pretrained=files[1], device=str(where))
    options = {name: state[name] for name in ("resize", "method", "precision", "selection")}
    try:
        made = SCORERS[kind].from_state(encoder, tensors, state, **options)
    except HpdvalError:
        raise
    except Exception as error:  # what heads are made of raises as wrong options lead it
        raise RunError(f"{folder / 'model.safetensors'} holds no scorer of ours: {one_line(error)}") from error
    scorer: Scorer = made
    scorer.came_from(folder)
    return scorer


def open_run(folder: str | os.PathLike[str], kind: str, dataset: Dataset, experiment: Experiment, start: Scorer) -> Run:
    """Open the run of ``kind`` whose key holds the experiment, the data and the weights it starts from."""
    with same_error():
        config, inputs = describe_run(kind, dataset, experiment, start)
        kind_of_run = Run if rank() == 0 else FollowedRun
        run = kind_of_run(folder, kind=kind, config=config, inputs=inputs)
        if run.writes and not run.finished and dataset.origin:
            write_json(run.path("data.json"), dict(dataset.origin))  # not in the key: the same data may lie elsewhere
    return follow(run)


def describe_run(
    kind: str, dataset: Dataset, experiment: Experiment, start: Scorer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and inputs of a run: all that its result depends on, and nothing else."""
    experiment = experiment.relevant_to(kind)
    if kind == "zero-shot" and isinstance(start, DualViewScorer):
        experiment = replace(experiment, score=start.score_config)  # one view or both: the scorer decides that
    config = experiment.settings(kind)
    inputs = run_inputs(dataset, experiment, start)
    inputs["numeric"] = numeric_mode(config.precision, start.encoder.device)  # what "auto" means on this device
    if isinstance(config, TunedConfig) and config.backbone is not None:
        inputs["backbone"] = encoder_of(config, start.encoder, experiment.seed).fingerprint
    if isinstance(config, LmptConfig):
        inputs["captions"] = caption_digest(dataset.train)
    if isinstance(config, CprflConfig) and config.semantic not in SOURCES:
        inputs["semantic"] = digest(word_vectors(config.semantic, dataset.classes).tolist())
        experiment = replace(experiment, rival=replace(config, semantic="file"))  # by its content, wherever it lies
    if kind in ("stage1", "joint") and not _trains_clip_itself(experiment):
        inputs["student"] = student_of(experiment, clip_of(start)).fingerprint
    return experiment.as_dict(), inputs


def shared_folder(
    shared: str | os.PathLike[str], kind: str, dataset: Dataset, experiment: Experiment, start: Scorer
) -> Path:
    """Return the folder below ``shared`` where the run of ``kind`` lies that this experiment shares with others."""
    config, inputs = json.loads(json.dumps(describe_run(kind, dataset, experiment, start), default=str))
    return Path(shared) / f"{kind}-{run_key(kind, config, inputs)[:12]}"


def _trains_clip_itself(experiment: Experiment) -> bool:
    config = experiment.stage1
    return config.student == config.projection == "clip" and experiment.normalise


def student_of(experiment: Experiment, clip: Clip) -> Clip:
    """Return the model whose image tower stage 1 trains: a copy of ``clip``, changed as the experiment says."""
    config = experiment.stage1
    return make_student(
        clip,
        student=config.student,
        student_weights=config.student_weights,
        projection=config.projection,
        normalise=experiment.normalise,
        seed=experiment.seed,
    )


def clip_of(start: Scorer) -> Clip:
    """Return the CLIP of a scorer that a training is to start from.

    Raises:
        RunError: it has none.
    """
    if not isinstance(start.encoder, Clip):
        raise RunError(f"{start.method} has a {type(start.encoder).__name__} for encoder; start from a run with a CLIP")
    return start.encoder


def encoder_of(config: TunedConfig, encoder: Encoder, seed: int) -> Encoder:
    """Return the encoder that a rival trains: a CNN where it names one, else a copy of ``encoder``."""
    if config.backbone is None:
        return copy.deepcopy(encoder)
    return load_cnn(config.backbone, config.weights, image_size=config.image_size, device=encoder.device, seed=seed)


def run_inputs(dataset: Dataset, experiment: Experiment, start: Scorer) -> dict[str, Any]:
    """Return what a run depends on besides its configuration: digests of labels, pixels and starting weights."""
    size, resize = start.encoder.image_size, experiment.resize
    pixels = {
        name: digest(list(ImageStore.open(split, size, mode=resize).hashes))
        for name, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    labels = {
        name: label_digest(split)
        for name, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    return {
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "images": {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test)},
        "labels": labels,
        "pixels": pixels,
        "weights": start.encoder.fingerprint,
        "start": start.method,
        "device": start.encoder.device.type,
    }


def label_digest(split: Split) -> str:
    """Return the digest of a split's images and labels, as a run keeps it: ``digest(ids, targets.tolist())``."""
    text = json.dumps([split.ids, []], ensure_ascii=False, separators=(",", ":"))
    whole = hashlib.sha256(text.removesuffix("]]").encode())
    n, n_classes = split.targets.shape
    step = max(1, DIGESTED // (n_classes + 1))
    for start in range(0, n, step):  # N x C Python numbers at once would be gigabytes where both are large
        rows = _json_rows(split.targets[start : start + step])
        whole.update(rows if start + step < n else rows.removesuffix(b","))
    whole.update(b"]]")
    return whole.hexdigest()


def _json_rows(targets: np.ndarray) -> bytes:
    """Return rows of 0 and 1 (n, C) as JSON has them, a comma behind each."""
    n, n_classes = targets.shape
    text = np.full((n, max(2 * n_classes + 2, 3)), ord(","), np.uint8)
    text[:, 1 : 2 * n_classes : 2] = targets + ord("0")
    text[:, 0], text[:, -2] = ord("["), ord("]")
    return text.tobytes()


def score_run(
    run: Run, scorer: Scorer, dataset: Dataset, experiment: Experiment, *, show: bool = True
) -> tuple[np.ndarray, Evaluation]:
    """Score the test split, save model, predictions and result in ``run``, and return scores (N, C) and evaluation.

    The result carries its protocol: data set, N, read-out, selection rule and seed.  Figures and tables can then be
    added to the folder; ``run.finish()`` ends it.  Of a finished run the stored scores are returned and nothing is
    written.
    """
    scores = read_predictions(run.folder)["scores"] if run.finished else scorer.score(dataset.test, show=show)
    result = evaluate(
        scores,
        dataset.test.targets,
        dataset.class_counts,
        readout=experiment.readout,
        classes=dataset.classes,
        protocol=f"{dataset.name} test, {len(dataset.test)} images",
        selection=scorer.selection,
    )
    if run.writes and not run.finished:
        scorer.save(run.folder)
        run.save_predictions(dataset.test.ids, scores, dataset.test.targets, dataset.classes)
        about: dict[str, Any] = {"method": scorer.method, "recipe": experiment.name, "seed": experiment.seed}
        if scorer.trained is not None:  # of a run made before this was kept it is not known
            about["trained"] = {name: dict(cost) for name, cost in scorer.trained.items()}
        write_json(run.path("result.json"), {**about, "notes": list(dataset.notes), **result.as_dict()})
    return scores, result


def report_run(run: Run, scorer: Scorer, dataset: Dataset, experiment: Experiment, *, show: bool = True) -> Evaluation:
    """Do what :func:`score_run` does, and finish the run.

    Raises:
        Interrupted: a stop was asked for meanwhile; the run is finished, and what would come after it is not begun.
    """
    _, result = score_run(run, scorer, dataset, experiment, show=show)
    stop = asked_to_stop()
    run.finish()
    everyones("finished")  # no process reads the run before the first one wrote it
    if stop:
        raise Interrupted(f"stopped on request after {run.kind}, which is done; run the same command again to continue")
    return result
