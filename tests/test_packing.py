"""Packed rows against the prompts they came from: each is read back from the tokens that its [EOT] sees."""

from __future__ import annotations

from random import Random

import pytest
import torch

from hpdval.models.packing import Packed, one_a_row, pack, row_length

Prompts = tuple[tuple[int, ...], ...]


def random_prompts(count: int, shared: int, longest: int, seed: int = 0) -> Prompts:
    r = Random(seed)
    head = tuple(r.choices(range(1, 9), k=shared))
    return tuple((*head, *r.choices(range(1, 5), k=r.randint(0, longest)), 9) for _ in range(count))


def read_back(packed: Packed, prompt: int) -> list[int]:
    """The tokens that the last token of a prompt sees, in the order of their positions."""
    row, column = packed.ends[:, prompt].tolist()
    seen = packed.visible[row, column].nonzero()[:, 0]
    positions = packed.positions[row, seen].tolist()
    assert sorted(positions) == list(range(len(seen)))
    return [token for _, token in sorted(zip(positions, packed.ids[row, seen].tolist(), strict=True))]


@pytest.mark.parametrize("width", [1, 64, 100_000])
@pytest.mark.parametrize("shape", [(1, 0, 0), (1, 5, 3), (2, 0, 4), (9, 1, 2), (50, 5, 12), (200, 17, 4)])
def test_every_token_sees_its_own_prompt_up_to_itself_and_nothing_else(shape: tuple[int, int, int], width: int) -> None:
    prompts = random_prompts(*shape)
    packed = pack(prompts, width)
    assert [read_back(packed, i) for i in range(len(prompts))] == [list(prompt) for prompt in prompts]
    sees = packed.visible.sum(dim=-1)
    end_of_row = sees == 1  # what fills a row sees itself alone, and so does the first token
    assert (packed.positions[end_of_row] == 0).all()
    assert (sees == packed.positions + 1).all()
    for row, column in packed.ends.T.tolist():  # what a token sees is what the tokens that it sees see, and itself
        path = packed.visible[row, column].nonzero()[:, 0]
        assert torch.equal(packed.visible[row][path][:, path].sum(dim=0).sort().values, torch.arange(1, len(path) + 1))


def test_shared_tokens_stand_once_in_a_row_and_first() -> None:
    prompts = random_prompts(100, shared=6, longest=3)
    packed = pack(prompts, 64)
    assert len(packed.ids) > 1
    assert (packed.ids[:, :6] == torch.tensor(prompts[0][:6])).all()
    assert (packed.positions[:, :6] == torch.arange(6)).all()
    assert ((packed.positions < 6).sum(dim=1) - (packed.ids == 0).sum(dim=1) == 6).all()
    branches = {prompt[:i] for prompt in prompts for i in range(7, len(prompt) + 1)}
    again = int((packed.ids > 0).sum()) - 6 * len(packed.ids) - len(branches)
    assert 0 <= again < 4 * len(packed.ids)  # the first prompt of a row may repeat a branch of the row before


def test_equal_prompts_are_one() -> None:
    packed = pack(((6, 1, 7), (6, 2, 7), (6, 1, 7)), 512)
    assert packed.ids.tolist() == [[6, 1, 7, 2, 7]]
    assert packed.ends.T.tolist() == [[0, 2], [0, 4], [0, 2]]


@pytest.mark.parametrize("count", [30, 80, 1000])
def test_rows_are_of_about_the_best_length_and_nearly_full(count: int) -> None:
    packed = pack(random_prompts(count, shared=5, longest=6), 512)
    assert packed.ids.shape[1] < row_length(5, 512) + 12
    assert (packed.ids == 0).float().mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 0, 0), (2, 0, 4), (50, 5, 12)])
def test_one_a_row_keeps_every_prompt_in_its_own_and_no_column_that_none_needs(shape: tuple[int, int, int]) -> None:
    prompts = random_prompts(*shape)
    packed = one_a_row(prompts)
    assert packed.ids.shape == packed.positions.shape == (len(prompts), max(map(len, prompts)))
    assert packed.ends[0].tolist() == list(range(len(prompts)))
    for i, prompt in enumerate(prompts):
        seen = packed.visible[packed.ends[1, i]].nonzero()[:, 0]
        assert packed.ids[i, seen].tolist() == list(prompt)
        assert packed.positions[i, seen].tolist() == list(range(len(prompt)))
    assert torch.equal(packed.visible.sum(dim=-1), torch.arange(1, packed.ids.shape[1] + 1))
