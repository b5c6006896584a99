"""The classes that some methods rank highest: python reports/scripts/top_predictions.py runs/rivals reports

Four test images of scenes-lt, drawn with a fixed seed among those that show a tail class; notebook 10 draws the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hpdval
from hpdval import plots, tables
from hpdval.files import atomic_write
from hpdval.plots import figure_bytes
from hpdval.report.gather import gather

METHODS = ("zero-shot", "linear probe", "CoOp", "fine-tuning", "CPRFL", "HP-DVAL")


def main(sweep: Path, out: Path) -> None:
    """Draw the figure from stored scores, seed 0."""
    data = hpdval.load_dataset("scenes-lt")
    cells = {cell.label: cell for one in gather([sweep]).comparisons[::-1] for cell in one.cells if cell.runs}
    scores = {name: tables.stored_scores(cells[name].runs[min(cells[name].runs)], data) for name in METHODS}
    rows = plots.tail_images(data.test.targets, data.class_counts, count=4)
    pictures = [data.test.image(int(i)) for i in rows]
    shown = {name: values[rows] for name, values in scores.items()}
    figure = plots.top_predictions(
        pictures, shown, data.test.targets[rows], data.classes, class_counts=data.class_counts
    )
    with atomic_write(out / "rivals-top-predictions.png") as file:
        file.write(figure_bytes(figure, "png", dpi=150))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
