"""Images and labels: sources, decoding, the decoded store, splits, augmentation and the embedded scenes."""

from hpdval.data.dataset import Dataset, Split
from hpdval.data.decode import decode
from hpdval.data.load import load_dataset
from hpdval.data.splits import carve_validation, check_disjoint, long_tail_subset, pareto_reference
from hpdval.data.store import ImageStore, resize_image

__all__ = [
    "Dataset",
    "ImageStore",
    "Split",
    "carve_validation",
    "check_disjoint",
    "decode",
    "load_dataset",
    "long_tail_subset",
    "pareto_reference",
    "resize_image",
]
