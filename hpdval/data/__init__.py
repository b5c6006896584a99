"""Images and labels: sources, decoding, the decoded store, splits, augmentation and the embedded scenes."""

from hpdval.data.dataset import Dataset, Split
from hpdval.data.decode import decode
from hpdval.data.episodes import Episode, make_episodes
from hpdval.data.fewshot import PROTOCOLS, balanced_rows, base_dataset, novel_test
from hpdval.data.load import load_dataset
from hpdval.data.published_episodes import read_episode, read_episodes
from hpdval.data.splits import carve_validation, check_disjoint, long_tail_subset, pareto_reference
from hpdval.data.store import ImageStore, resize_image

__all__ = [
    "PROTOCOLS",
    "Dataset",
    "Episode",
    "ImageStore",
    "Split",
    "balanced_rows",
    "base_dataset",
    "carve_validation",
    "check_disjoint",
    "decode",
    "load_dataset",
    "long_tail_subset",
    "make_episodes",
    "novel_test",
    "pareto_reference",
    "read_episode",
    "read_episodes",
    "resize_image",
]
