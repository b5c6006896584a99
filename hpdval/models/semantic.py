"""What a class name means, as a vector: from CLIP's text tower, from a file of word vectors, or drawn at random.

Letters: C classes, T width of the class embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hpdval.errors import ConfigError, ModelError
from hpdval.models.clip import Clip, class_names
from hpdval.models.prompts import hand_crafted

RANDOM_WIDTH = 512  # that of ViT-B/16's text features
# names of PASCAL VOC that are two words; a file that has them as one is taken at its word
TWO_WORDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def class_embeddings(
    classes: Sequence[str],
    source: str | os.PathLike[str] = "clip",
    *,
    clip: Clip | None = None,
    width: int = RANDOM_WIDTH,
    seed: int = 0,
) -> Tensor:
    """Return class embeddings W (C, T) float32, not L2-normalised.

    Args:
        classes: C names; underscores become spaces.
        source: ``"clip"`` for the text features of "a photo of a {class}."; ``"random"`` for draws from N(0, 1);
            else the file of :func:`word_vectors`.
        clip: whose text tower, for ``"clip"``; T is its D.
        width: T, for ``"random"``.
        seed: for ``"random"``; the same draw on every machine.

    Raises:
        ConfigError: ``"clip"`` without a model, a width below 1, or no classes.
        ModelError: a file that cannot be used.

    >>> class_embeddings(["cat", "dog"], "random", width=300).shape
    torch.Size([2, 300])
    """
    if isinstance(classes, str) or not class_names(classes):
        raise ConfigError(f"classes must be a non-empty list of names, got {classes!r:.80}")
    if source == "clip":
        if clip is None:
            raise ConfigError("class embeddings from 'clip' need a model; give clip=load_clip(...)")
        return hand_crafted(clip, classes).float()
    if source == "random":
        if width < 1:
            raise ConfigError(f"width is {width!r}; use an integer of at least 1")
        return torch.randn(len(classes), width, generator=torch.Generator().manual_seed(seed))
    return word_vectors(source, classes)


def word_vectors(path: str | os.PathLike[str], classes: Sequence[str]) -> Tensor:
    """Return for each class the mean of its words' vectors, (C, T) float32, from a text file of GloVe or Word2Vec.

    A line is ``word v_1 ... v_T``, UTF-8, with blanks between; a first line ``N T`` is a header, as Word2Vec and
    fastText write it.  A word is looked up as it is written, then in lower case; of words that stand twice the first
    counts.  Only the lines of the words that are needed are parsed, and nothing in the file is run.

    Args:
        path: the unpacked file, such as ``glove.6B.300d.txt``; a binary Word2Vec file must be converted first.
        classes: C names; underscores become spaces.

    Raises:
        ModelError: the file is absent, not text or damaged, or has no vector for a word, which is named.
    """
    names = class_names(classes)
    vectors = _read(Path(path), {word for name in names for way in _ways(name.split()) for word in way})
    return torch.stack([_mean(name, vectors, path) for name in names]).float()


def _ways(words: Iterable[str]) -> list[list[str]]:
    """Return, for all words of a name, the ways to look it up in their order: each is a list of words of the file."""
    return [way for word in words for way in ([word], [word.lower()], TWO_WORDS.get(word.lower(), word).split())]


def _mean(name: str, vectors: dict[str, Tensor], path: str | os.PathLike[str]) -> Tensor:
    found: list[str] = []
    for word in name.split():
        way = next((way for way in _ways([word]) if all(part in vectors for part in way)), None)
        if way is None:
            raise ModelError(f"{path} has no vector for {word!r} of class {name!r}; use a larger file or another name")
        found += way
    return torch.stack([vectors[word] for word in found]).mean(dim=0)


def _read(path: Path, wanted: set[str]) -> dict[str, Tensor]:
    """Return the vectors (T,) float64 of those wanted words that a file of word vectors has."""
    if not os.path.isfile(path):
        raise ModelError(f"{path} does not exist; give 'clip', 'random' or a text file of word vectors")
    with path.open("rb") as file:
        if b"\0" in file.read(1 << 16):
            raise ModelError(f"{path} is no text; unpack it, or convert binary vectors to lines of 'word v_1 ... v_T'")
        file.seek(0)
        return _parse(file, {word.encode(): word for word in wanted}, path)


def _parse(file: BinaryIO, wanted: dict[bytes, str], path: Path) -> dict[str, Tensor]:
    vectors: dict[str, Tensor] = {}
    width = 0
    for number, line in enumerate(file, start=1):
        if width and (line.split(None, 1) or [b""])[0] not in wanted:
            continue  # most of millions of lines
        word, *values = line.split() or [b""]  # of bytes: at ASCII blanks alone, as others are parts of words
        if not width:
            header = number == 1 and len(values) == 1 and word.isdigit() and values[0].isdigit()
            width = int(values[0]) if header else len(values)
            if header:
                continue
        if word not in wanted or wanted[word] in vectors or len(values) > width:  # GloVe has words with blanks in them
            continue
        try:
            vector = torch.tensor([float(value) for value in values], dtype=torch.float64)
        except ValueError:
            vector = torch.full((width,), torch.nan)
        if len(vector) != width or not width or not bool(torch.isfinite(vector).all()):
            raise ModelError(
                f"{path}, line {number}: {wanted[word]!r} needs {width} finite numbers; the file is damaged"
            )
        vectors[wanted[word]] = vector
        if len(vectors) == len(wanted):
            break
    return vectors
