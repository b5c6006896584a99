"""Prompts side by side in a few long rows, where what they share stands once.

In a causal text tower the hidden state of a token depends on nothing that follows, so prompts are a tree: its trunk
is [SOS] v_1 .. v_M, its branches are class names.  A row holds the nodes of such a tree one after the other, and a
mask lets a token see itself and the earlier tokens of its own prompt: keys and values of the trunk serve all
branches.  Prompts whose contexts differ have no trunk: each is a row of its own, cut after the last [EOT] of all.

Letters: C prompts, R rows, T tokens of a row, W text transformer width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

import torch
from torch import Tensor

Ids = tuple[int, ...]  # the tokens of a prompt from [SOS] to [EOT], without padding


@dataclass(frozen=True, eq=False)
class Packed:
    """C prompts in R rows of T tokens: as trees that begin with the tokens that all prompts share, or one in each row.

    Attributes:
        ids, positions: (R, T) int64, tokens and their places in their own prompts; a short row ends in zeros.
        visible: (R, T, T) bool, whether the token of the second index sees that of the third; (T, T) where rows are
            alike.
        ends: (2, C) int64, row and column of each prompt's last token.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    ends: Tensor


@lru_cache(maxsize=4)  # every step of a training asks for the same classes
@torch.inference_mode(False)  # what is kept may be asked for by a pass with gradients next
def pack(prompts: tuple[Ids, ...], width: int, device: torch.device | str = "cpu") -> Packed:
    """Return prompts in rows of about :func:`row_length` tokens, for a tower of width W, on its device.

    >>> packed = pack(((6, 1, 2, 7), (6, 1, 7)), width=512)  # 6 for [SOS], 7 for [EOT]
    >>> packed.ids.tolist(), packed.positions.tolist(), packed.ends.tolist()
    ([[6, 1, 2, 7, 7]], [[0, 1, 2, 3, 2]], [[0, 0], [3, 4]])
    >>> packed.visible[0, 4].tolist()
    [True, True, False, False, True]
    """
    groups = _split(prompts, width)
    rows = [_tree([prompts[i] for i in group]) for group in groups]
    length = max(len(tokens) for tokens, _, _ in rows)
    ids, positions = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
    visible = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # what fills a row sees itself: no NaN
    ends = torch.zeros(2, len(prompts), dtype=torch.long)
    for row, (group, (tokens, paths, last)) in enumerate(zip(groups, rows, strict=True)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        positions[row, : len(tokens)] = torch.tensor([len(path) - 1 for path in paths])
        seen = [(node, other) for node, path in enumerate(paths) for other in path]
        visible[row][tuple(torch.tensor(seen).T)] = True
        ends[:, group] = torch.stack([torch.full((len(last),), row), torch.tensor(last)])
    return Packed(*(tensor.to(device) for tensor in (ids, positions, visible, ends)))


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def one_a_row(prompts: tuple[Ids, ...], device: torch.device | str = "cpu") -> Packed:
    """Return every prompt in a row of its own, R = C, as long as the longest of them.

    >>> packed = one_a_row(((6, 1, 2, 7), (6, 1, 7)))
    >>> packed.ids.tolist(), packed.ends.tolist()
    ([[6, 1, 2, 7], [6, 1, 7, 0]], [[0, 1], [3, 2]])
    """
    length = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (length - len(prompt))] for prompt in prompts])
    positions = torch.arange(length).repeat(len(prompts), 1)
    visible = torch.ones(length, length, dtype=torch.bool).tril()  # what fills a row comes last: no prompt sees it
    ends = torch.tensor([range(len(prompts)), [len(prompt) - 1 for prompt in prompts]])
    return Packed(*(tensor.to(device) for tensor in (ids, positions, visible, ends)))


def row_length(shared: int, width: int) -> float:
    """Return the number of tokens T of a row at which packing costs least.

    A token costs 24 W^2 operations in matrix products and 4 T W in attention, and every row repeats the ``shared``
    tokens: the loss, a fraction T / (6 W) + shared / T, is least at T = sqrt(6 W shared).

    >>> round(row_length(5, width=512))
    124
    """
    return math.sqrt(6 * width * shared)


def _split(prompts: Sequence[Ids], width: int) -> list[list[int]]:
    """Return which prompts go into which row: neighbours in the dictionary, so that they share what they can."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    first, last = prompts[order[0]], prompts[order[-1]]
    shared = _common(first, last)
    previous = [first[:shared], *(prompts[i] for i in order)]
    sizes = [len(prompts[i]) - _common(before, prompts[i]) for i, before in zip(order, previous, strict=False)]
    total = max(sum(sizes), 1)  # of all tokens but the shared ones
    rows = math.ceil(total / max(row_length(shared, width) - shared, *map(len, prompts), 1))
    starts = accumulate(sizes, initial=0)
    placed = groupby(zip(order, starts, strict=False), lambda pair: min(pair[1] * rows // total, rows - 1))
    return [[i for i, _ in group] for _, group in placed]


def _tree(prompts: Sequence[Ids]) -> tuple[list[int], list[list[int]], list[int]]:
    """Return tokens, what each of them sees with itself at last, and where each of these sorted prompts ends."""
    tokens: list[int] = []
    paths: list[list[int]] = []
    ends: list[int] = []
    before: Ids = ()
    path: list[int] = []
    for prompt in prompts:
        path = path[: _common(before, prompt)]
        for token in prompt[len(path) :]:
            path = [*path, len(tokens)]
            tokens.append(token)
            paths.append(path)
        ends.append(path[-1])
        before = prompt
    return tokens, paths, ends


def _common(a: Ids, b: Ids) -> int:
    """Return how many tokens two prompts have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
