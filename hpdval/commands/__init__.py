"""Commands of ``hpdval``, a module each: it offers ``add_parser(commands)``, and loads what it needs when it runs."""

from __future__ import annotations

from collections.abc import Sequence


def joined(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with ``--sort -total`` as ``--sort=-total``.

    argparse takes any word that begins with a dash for an option.

    >>> joined(["runs", "--sort", "-total", "--sort", "seed"])
    ['runs', '--sort=-total', '--sort', 'seed']
    """
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--sort" and word.startswith("-") and not word.startswith("--"):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found
