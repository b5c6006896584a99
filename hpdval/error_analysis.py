"""The errors of a finished run, with thresholds and probabilities fitted on images it was not tested on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hpdval.data.dataset import Dataset, Split
from hpdval.errors import RunError
from hpdval.report.errors import Fitted, examine_errors
from hpdval.report.gallery import gallery_folder, write_gallery
from hpdval.run import read_manifest
from hpdval.scoring import label_digest, load_run
from hpdval.tables import stored_scores


def error_report(
    run: str | os.PathLike[str],
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    n: int = 8,
    resamples: int = 500,
    device: str = "auto",
    show: bool = True,
) -> Path:
    """Write the errors of a finished run on the test images into ``folder`` and return its ``index.html``.

    Test scores are the stored ones.  Thresholds and calibration are fitted on the validation part that the run knew, or
    else on its training images, which the run's model scores for that; a run that holds no model has neither.  The same
    input gives the same bytes.  The folder holds small copies of the data set's pictures: mind their licence.

    Args:
        run: folder of a finished run.
        dataset: as it was loaded for the run, with the same ``val`` and ``val_seed``.
        folder: new, empty, or of an earlier call, which is replaced.
        n: mistakes of each kind and class, at most.
        resamples: of the intervals over test images.
        device: auto, cpu or cuda, for scoring.
        show: show progress.

    Raises:
        ConfigError: ``n`` below 1, or fewer than 2 resamples.
        DataError: an image cannot be read.
        RunError: the run is unfinished or damaged, was made on other images, classes or labels, or ``folder`` holds
            something else.
    """
    gallery_folder(folder)  # refused before the long work, not after it
    stored_scores(run, dataset)
    part = fitting_part(run, dataset)
    fitted = None
    if part is not None:
        split, images = part
        scores = load_run(run, device=device).score(images, description=f"scoring {split} images", show=show)
        fitted = Fitted(split=split, scores=scores, targets=images.targets)
    report = examine_errors(run, dataset, fitted, n=n, resamples=resamples)
    return write_gallery(report, dataset, folder, show=show)


def fitting_part(run: str | os.PathLike[str], dataset: Dataset) -> tuple[str, Split] | None:
    """Return what may be fitted on, "validation" or "training", with its images; None where the run holds no model.

    Raises:
        RunError: the run was trained on other images of this data set.
    """
    manifest = read_manifest(run)
    recorded: dict[str, Any] = manifest.get("inputs", {}).get("labels", {})
    if "model.safetensors" not in manifest["files"] or not recorded:
        return None
    for name, split in (("val", dataset.val), ("train", dataset.train)):
        if recorded.get(name) != label_digest(split):
            config = manifest.get("config", {})
            asked = ", ".join(f"{option}={config.get(key)}" for option, key in (("val", "val"), ("val_seed", "seed")))
            raise RunError(
                f"{run} was made with other {'validation' if name == 'val' else 'training'} images than "
                f"{dataset.name} has here; load the data set as for the run, with {asked}"
            )
    if len(dataset.val):
        return "validation", dataset.val
    return ("training", dataset.train) if len(dataset.train) else None
