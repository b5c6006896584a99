"""Published numbers as data: what papers print and released logs say, each with its protocol and its source."""

from __future__ import annotations

import pandas as pd

from hpdval.assets import asset_path
from hpdval.errors import ConfigError

PUBLISHED = ("voc-lt", "coco-lt", "voc-fewshot-1", "voc-fewshot-5", "coco-fewshot-1", "coco-fewshot-5")
# what published_per_class.csv holds: AP under the l2 read-out, from the logs released with HP-DVAL
PER_CLASS = {
    "HP-DVAL": {"readout": "l2", "selection": "best on test", "source": "released log"},
    "Zero-shot CLIP": {"readout": "l2", "selection": "none (zero-shot)", "source": "released log"},
}


def published_results(dataset: str) -> pd.DataFrame:
    """Return the published numbers on ``dataset``, a row for each method; mAP in percent, NaN where absent.

    Columns: dataset, method, visual_init, backbone, total, head, medium, tail, readout ("unknown" where the source does
    not say), selection, episodes (1, or over how many a few-shot number is the mean), test_set, n_images, source, note.
    Rows of one table may have different protocols: show them with :func:`hpdval.tables.protocol_table`.

    Raises:
        ConfigError: nothing was published on ``dataset``; the known ones are listed.

    >>> published_results("voc-lt").set_index("method").loc["HP-DVAL", ["readout", "selection"]].tolist()
    ['l2', 'best on test']
    """
    texts = ["visual_init", "backbone", "note"]
    table = pd.read_csv(asset_path("published_results.csv"), dtype={"n_images": "Int64"})
    table[texts] = table[texts].fillna("")
    return _of_dataset(table, dataset, "results are")


def published_per_class(dataset: str, method: str = "HP-DVAL") -> pd.DataFrame:
    """Return class, group and AP in percent of each class.

    ``attrs`` holds what all rows share: dataset, n_images, readout, selection and source.

    Raises:
        ConfigError: no AP by class was published for ``dataset`` or ``method``; the known ones are listed.

    >>> float(published_per_class("voc-lt").query("group == 'head'")["ap"].mean().round(2))
    86.36
    """
    table = _of_dataset(pd.read_csv(asset_path("published_per_class.csv")), dataset, "AP by class is")
    if method not in PER_CLASS:
        raise ConfigError(f"no published AP by class for method {method!r}; choose one of {', '.join(PER_CLASS)}")
    found = table[["class", "group"]].assign(ap=table[method])
    n_images = int(published_results(dataset)["n_images"].iloc[0])
    found.attrs.update(dataset=dataset, n_images=n_images, **PER_CLASS[method])
    return found


def _of_dataset(table: pd.DataFrame, dataset: str, what: str) -> pd.DataFrame:
    chosen = table[table["dataset"] == dataset].reset_index(drop=True)
    if chosen.empty:
        known = ", ".join(table["dataset"].unique())
        raise ConfigError(f"no published {what} known for data set {dataset!r}; choose one of {known}")
    return chosen
