"""Validation mosaics that share no photograph with the mosaics trained on, made from the training mosaics alone.

The training mosaics show each photograph several times, some of them mirrored.  A validation part carved from them
shares its photographs with the rest and rewards memory: settings chosen on one lost on the test mosaics.  This script
cuts the photographs out, finds which are the same, keeps a third of them for validation, and composes both sets anew.

    python reports/scripts/disjoint_mosaics.py $HPDVAL_SHARED/data/mosaic OUT
    (OUT then holds train.csv, val.csv, classes.txt and their images)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SAME = 0.85  # correlation of two 16 x 16 thumbnails, or of one with the other's mirror image
HELD_OUT, VALIDATION_IMAGES, TILE = 0.35, 800, 32


def signature(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the standardised pixels of a tile and of its mirror image."""
    small = np.asarray(Image.fromarray(tile).resize((16, 16)), dtype=float)
    both = [side.ravel() for side in (small, small[:, ::-1])]
    first, second = ((values - values.mean()) / (values.std() + 1e-6) for values in both)
    return first, second


def photographs(tiles: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Group tiles that show the same photograph."""
    groups: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for tile in tiles:
        sides = signature(tile)
        for known, members in groups:
            if max(known @ side for side in sides) / known.size > SAME:
                members.append(tile)
                break
        else:
            groups.append((sides[0], [tile]))
    return [members for _, members in groups]


def compose(rows: list[list[str]], pool: dict[str, list[list[np.ndarray]]], out: Path, name: str, rng) -> None:
    """Write one 64 x 64 mosaic of photographs over noise for each row of labels."""
    (out / name).mkdir(parents=True)
    table = []
    for number, row in enumerate(rows):
        noise = rng.integers(0, 256, 3) + rng.normal(0, 25, (2 * TILE, 2 * TILE, 3))
        canvas = np.clip(noise, 0, 255).astype(np.uint8)
        for slot, label in zip(rng.permutation(4), row, strict=False):
            shown = pool[label][rng.integers(len(pool[label]))]
            tile = Image.fromarray(shown[rng.integers(len(shown))]).resize((TILE, TILE))
            top, left = TILE * (slot // 2), TILE * (slot % 2)
            canvas[top : top + TILE, left : left + TILE] = np.asarray(tile)
        Image.fromarray(canvas).save(out / name / f"{number:05d}.png")
        table.append((f"{name}/{number:05d}.png", ";".join(dict.fromkeys(row))))
    pd.DataFrame(table, columns=["path", "labels"]).to_csv(out / f"{name}.csv", index=False)


def main(source: Path, out: Path) -> None:
    """Make both sets and print how many photographs each class has."""
    rng = np.random.default_rng(0)
    boxes = pd.read_csv(source / "boxes.csv")
    boxes = boxes[boxes.path.str.startswith("train/")]
    tiles: dict[str, list[np.ndarray]] = {}
    rows = []
    for path, found in boxes.groupby("path"):
        image = np.asarray(Image.open(source / str(path)).convert("RGB"))
        rows.append(found["class"].tolist()[:4])
        for label, x, y, w, h in found[["class", "x", "y", "w", "h"]].itertuples(index=False):
            tiles.setdefault(label, []).append(image[y : y + h, x : x + w])
    train, val = {}, {}
    for label, given in tiles.items():
        groups = photographs(given)
        order = rng.permutation(len(groups))
        held = max(1, round(HELD_OUT * len(groups)))
        val[label], train[label] = [groups[i] for i in order[:held]], [groups[i] for i in order[held:]]
        print(f"{label}: {len(given)} tiles, {len(groups)} photographs, {held} held out")
    classes = (source / "classes.txt").read_text().split("\n")
    names = [name.strip() for name in classes if name.strip()]
    mixed = [rows[rng.integers(len(rows))] if i % 2 else list(rng.choice(names, rng.integers(1, 4), replace=False))
             for i in range(VALIDATION_IMAGES)]  # fmt: skip
    compose(rows, train, out, "train", rng)
    compose(mixed, val, out, "val", rng)
    (out / "classes.txt").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
