"""The errors of a run as a folder: one page with thumbnails, tables, figures; no script, no network."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from hpdval.assets import asset_path
from hpdval.data.dataset import Dataset, Split
from hpdval.files import resolved
from hpdval.plots import figure_bytes
from hpdval.progress import progress
from hpdval.provenance import code_state
from hpdval.report.errors import ErrorReport, shown, shown_labels
from hpdval.report.folder import earlier_files, write_folder

KIND = "hpdval errors"
SIDE = 160  # pixels of a thumbnail, at most


class Thumbnail(NamedTuple):
    """A small picture: where it lies in the folder, its pixels, its bytes."""

    name: str
    width: int
    height: int
    data: bytes


def gallery_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder as a path.

    Raises:
        RunError: it holds other files, or is no folder.
    """
    path = resolved(folder)
    earlier_files(path, KIND)
    return path


def write_gallery(report: ErrorReport, dataset: Dataset, folder: str | os.PathLike[str], *, show: bool = True) -> Path:
    """Write the page of a report with its thumbnails, tables and figures, and return ``index.html``.

    The same report gives the same bytes.  An earlier gallery in ``folder`` is replaced.  No file is named after a class
    or an image: the number of a thumbnail is the place of its image among the test images.

    Raises:
        DataError: an image cannot be read; nothing was written.
        RunError: ``folder`` holds something else, or cannot be written.
    """
    target = gallery_folder(folder)
    mistakes = [one for each in report.classes for one in (*each.false_positives, *each.false_negatives)]
    thumbnails = make_thumbnails(dataset.test, {one.image for one in mistakes}, show=show)
    files = {"index.html": gallery_page(report, dataset, thumbnails).encode(errors="replace")}
    files |= {one.name: one.data for one in thumbnails.values()}
    for name, table in report.tables.items():
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6f")
        files[f"tables/{name}.csv"] = text.encode(errors="backslashreplace")
    for name, (chart, _) in report.figures.items():
        files |= {f"figures/{name}.{kind}": figure_bytes(chart, kind) for kind in ("svg", "png")}
    about = {"title": report.title, "readout": report.readout, "predictions": report.predictions, "code": code_state()}
    write_folder(target, KIND, files, about)
    return target / "index.html"


def make_thumbnails(split: Split, images: Iterable[int], *, show: bool = True) -> dict[int, Thumbnail]:
    """Return a JPEG of at most 160 pixels a side for each image; made from pixels, it carries no metadata."""
    found = {}
    wanted = sorted(images)
    for i in progress(wanted, "thumbnails", total=len(wanted), show=show):
        picture = Image.fromarray(np.ascontiguousarray(split.image(i)))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=88, subsampling=0)
        found[i] = Thumbnail(f"images/{i:06d}.jpg", *picture.size, buffer.getvalue())
    return found


def gallery_page(report: ErrorReport, dataset: Dataset, thumbnails: Mapping[int, Thumbnail]) -> str:
    """Return ``index.html``; whatever a class, an image or a note is called is escaped, and no script may run.

    The policy of the page allows its own pictures and the one style that it holds, by its hash.
    """
    template = asset_path("errors.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", template, re.DOTALL)
    assert style is not None
    state, test = code_state(), dataset.test
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    return (
        page.render(
            report=report,
            calibrated=report.summary is not None,
            thumbnails=thumbnails,
            shows=lambda i: shown_labels(report.names, test.targets[i]),
            id_of=lambda i: shown(test.ids[i]),
            number=_number,
            style_hash=base64.b64encode(sha256(style[1].encode()).digest()).decode(),
            code=f"hpdval {state['version']}",
        )
        + "\n"
    )


def _number(value: Any, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
