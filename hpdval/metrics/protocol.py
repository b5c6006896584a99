"""What a number is comparable with: test set, read-out, selection, and what was averaged (method, section 7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpdval.metrics.evaluate import Evaluation, excluded_names

SELECTED_ON_TEST = "selected on the test images"
_USUAL = ("one test", "all classes")  # said only where another number differs in it
_SELECTION = {"none": "nothing selected", "last": "nothing selected", "not stated": "selection not stated"}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a number was measured.  Two numbers may stand side by side only where all of this agrees.

    ``dataset`` names the training list, which gives classes and groups; ``selection`` is one of "nothing selected",
    "selected on the validation images", "selected on the test images", "selection not stated", or what the source says.
    """

    dataset: str
    n_images: int | None  # None: not stated
    readout: str  # "unknown" where a source does not say
    selection: str
    episodes: int = 1  # few-shot numbers are means over several
    excluded: tuple[str, ...] = ()  # classes without a test positive, in alphabetical order

    @classmethod
    def of(cls, result: Evaluation | Mapping[str, Any]) -> Protocol:
        """Return the protocol of an evaluation, of the record in a run's ``result.json``, or of a published row.

        A published row names its data set; otherwise it is ``protocol`` without "test" and number of images at its end,
        and ``voc_lt_train``, the name of the published list, is ``voc-lt``.

        >>> Protocol.of({"protocol": "voc_lt_train test, 4952 images", "n_images": 4952, "readout": "l2",
        ...              "selection": "best epoch on validation"})
        Protocol(dataset='voc-lt', n_images=4952, readout='l2', selection='selected on the validation images', ...)
        """
        record = result.as_dict() if isinstance(result, Evaluation) else result
        name = record["dataset"] if "dataset" in record else re.sub(r" test(, \d+ images)?$", "", record["protocol"])
        n_images = record["n_images"]
        return cls(
            dataset=str(name).strip().casefold().replace("_", "-").removesuffix("-train"),
            n_images=None if n_images is None else int(n_images),
            readout=record["readout"],
            selection=selection_rule(record["selection"]),
            episodes=int(record.get("episodes", 1)),
            excluded=tuple(sorted(excluded_names(record.get("excluded", ()), record.get("classes")))),
        )

    @property
    def test_set(self) -> str:
        """The test images, in words."""
        number = "a number of images not stated" if self.n_images is None else f"{self.n_images} images"
        return f"{self.dataset} test, {number}"

    @property
    def how(self) -> str:
        """Everything but the test images, in words."""
        return ", ".join(words for words in self._parts().values() if words not in _USUAL)

    def __str__(self) -> str:
        return f"{self.test_set}, {self.how}"

    def same_test(self, other: Protocol) -> bool:
        """Whether both were measured on the same test images, as far as sources state their number."""
        unstated = None in (self.n_images, other.n_images)
        return self.dataset == other.dataset and (unstated or self.n_images == other.n_images)

    def remarks(self, reference: Protocol) -> list[str]:
        """Return what a reader must be told beside a number of this protocol in a table that begins with ``reference``.

        That is every part that differs, and, differing or not, a selection on test images (method, section 6, point 4).
        """
        mine, theirs = self._parts(), reference._parts()
        told = [words for part, words in mine.items() if words != theirs[part] or words == SELECTED_ON_TEST]
        if self.dataset == reference.dataset and self.n_images is None and reference.n_images is not None:
            told.append("number of test images not stated")
        return told

    def _parts(self) -> dict[str, str]:
        left_out = f"without {', '.join(self.excluded)} (no test positive)" if self.excluded else "all classes"
        episodes = f"mean of {self.episodes} episodes" if self.episodes > 1 else "one test"
        readout = "read-out not known" if self.readout == "unknown" else f"read-out {self.readout}"
        return {"readout": readout, "selection": self.selection, "episodes": episodes, "classes": left_out}


def selection_rule(text: str) -> str:
    """Return a selection rule in the words of :class:`Protocol`; a rule that is not known keeps its own words."""
    found = re.findall(r"\bon (?:the )?(test|validation)\b", text.casefold())
    if found:  # of a stage or of the one it started from; test images are the graver matter
        return f"selected on the {min(found)} images"
    return next((words for start, words in _SELECTION.items() if text.startswith(start)), text)
