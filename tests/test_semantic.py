"""Class names as vectors: CLIP's, word vectors from files as GloVe and Word2Vec write them, and random ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpdval.errors import ConfigError, ModelError
from hpdval.models import hand_crafted, load_clip
from hpdval.models.semantic import class_embeddings, word_vectors

GLOVE = """the 0.5 0.25 -1
dog 1 2 3
light 0 1 0
traffic 2 3 4
dining 1 1 1
table 3 3 3
"""


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.3d.txt"
    path.write_text(GLOVE)
    return path


def test_a_class_is_the_mean_of_its_words(glove: Path) -> None:
    vectors = class_embeddings(["dog", "traffic_light", "dog"], glove)
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[1, 2, 3], [1, 2, 2], [1, 2, 3]]


def test_a_header_trailing_blanks_and_tabs_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "word2vec.txt"
    path.write_text("3 2\n</s> 0.5 0.5 \ndog 1 2 \ncat\t3\t4\r\n")
    assert word_vectors(path, ["cat", "dog"]).tolist() == [[3, 4], [1, 2]]
    path.write_text("7 2\n")  # a header only
    with pytest.raises(ModelError, match="no vector for '7' of class '7'"):
        word_vectors(path, ["7"])
    path.write_text("7 2 5\n")  # a word of two numbers
    assert word_vectors(path, ["7"]).tolist() == [[2, 5]]


def test_a_word_as_written_comes_before_lower_case_and_the_first_line_before_others(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("tv 1 1\nTV 2 2\nTV 3 3\nSofa 4 4\nchair 5 5\n")
    assert word_vectors(path, ["TV", "tv", "Chair"]).tolist() == [[2, 2], [1, 1], [5, 5]]
    with pytest.raises(ModelError, match="no vector for 'sofa'"):
        word_vectors(path, ["sofa"])


def test_words_with_blanks_in_them_are_passed_over(tmp_path: Path) -> None:
    """As in glove.840B.300d.txt: 'at name@domain.com' and a no-break space are words there."""
    path = tmp_path / "v.txt"
    path.write_text("the 1 2\nat name@domain.com 3 4\n\u00a0 5 6\nat 7 8\ncafé 9 10\n")
    assert word_vectors(path, ["at", "café"]).tolist() == [[7, 8], [9, 10]]


def test_two_words_that_voc_writes_as_one(glove: Path) -> None:
    assert word_vectors(glove, ["diningtable"]).tolist() == [[2, 2, 2]]
    glove.write_text(GLOVE + "diningtable 9 9 9\n")
    assert word_vectors(glove, ["diningtable"]).tolist() == [[9, 9, 9]]
    with pytest.raises(ModelError, match="no vector for 'tvmonitor' of class 'tvmonitor'"):
        word_vectors(glove, ["tvmonitor"])


def test_a_missing_word_is_named(glove: Path) -> None:
    with pytest.raises(ModelError, match=r"glove\.3d\.txt has no vector for 'lamp' of class 'traffic lamp'") as caught:
        class_embeddings(["dog", "traffic_lamp"], glove)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["dog 1 2", "dog 1 two 3", "dog 1 nan 3", "dog 1 2 1e999", "dog"])
def test_a_damaged_line_is_named(glove: Path, line: str) -> None:
    glove.write_text(GLOVE.replace("dog 1 2 3", line))
    with pytest.raises(ModelError, match=r"line 2: 'dog' needs 3 finite numbers"):
        word_vectors(glove, ["dog"])


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "GoogleNews.bin"
    binary.write_bytes(b"1 2\ndog " + np.array([1.0, 2.0], np.float32).tobytes())
    with pytest.raises(ModelError, match="is no text; unpack it, or convert"):
        word_vectors(binary, ["dog"])
    with pytest.raises(ModelError, match="does not exist; give 'clip', 'random' or a text file"):
        class_embeddings(["dog"], "glove")


def test_clip_gives_its_text_features(tmp_path: Path) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    clip = load_clip(tmp_path / "tiny.json")
    vectors = class_embeddings(["dog", "traffic_light"], clip=clip)
    assert torch.equal(vectors, hand_crafted(clip, ["dog", "traffic_light"]))
    assert not vectors.requires_grad
    with pytest.raises(ConfigError, match="need a model"):
        class_embeddings(["dog"])


def test_random_ones_depend_on_the_seed_alone() -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    first, again, other = (class_embeddings(["a", "b"], "random", width=300, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (2, 300)


@pytest.mark.parametrize(("classes", "width"), [([], 3), ("dog", 3), (["dog"], 0), (["dog", "_"], 3)])
def test_no_class_and_no_width_are_errors(classes: list[str], width: int) -> None:
    with pytest.raises(ConfigError):
        class_embeddings(classes, "random", width=width)
