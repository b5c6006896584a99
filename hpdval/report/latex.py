"""Tables for papers: LaTeX with booktabs and nothing else, whatever stands in class names and labels."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    '"': "''",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "\N{MULTIPLICATION SIGN}": r"\ensuremath{\times}",
    "\N{PLUS-MINUS SIGN}": r"\ensuremath{\pm}",
    "\N{MIDDLE DOT}": r"\ensuremath{\cdot}",
    "\N{LESS-THAN OR EQUAL TO}": r"\ensuremath{\leq}",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ensuremath{\geq}",
    "\N{RIGHTWARDS ARROW}": r"\ensuremath{\rightarrow}",
    "\N{INFINITY}": r"\ensuremath{\infty}",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}
_SPELT = {"lamda": "lambda", "final sigma": "varsigma"}  # as LaTeX spells what Unicode calls otherwise
_CAPITALS = {"gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "upsilon", "phi", "psi", "omega"}
_ACCENTS = "ACUTE|GRAVE|CIRCUMFLEX|DIAERESIS|TILDE|CEDILLA|CARON"


def escape(text: str) -> str:
    r"""Return text that LaTeX prints as it is written, with its standard fonts and no package.

    Accented Latin letters stay, Greek ones become formulas, and what the fonts do not have becomes its code point.

    >>> print(escape("50% of cash_$$"), escape("α = 0.4"), escape("犬"))
    50\% of cash\_\$\$ \ensuremath{\alpha} = 0.4 [U+72AC]
    """
    return "".join(_character(c) for c in unicodedata.normalize("NFC", " ".join(str(text).split())))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character if character.isprintable() else ""
    name = unicodedata.name(character, "")
    if greek := re.fullmatch("GREEK (SMALL|CAPITAL) LETTER ((?:FINAL )?[A-Z]+)", name):
        letter = _SPELT.get(greek[2].lower(), greek[2].lower())
        if greek[1] == "SMALL" and letter != "omicron":
            return rf"\ensuremath{{\{letter}}}"
        if letter in _CAPITALS:
            return rf"\ensuremath{{\{letter.capitalize()}}}"
    if re.fullmatch(f"LATIN (SMALL|CAPITAL) LETTER [A-Z] WITH ({_ACCENTS})", name):
        return character
    return f"[U+{ord(character):04X}]"


def highlighted(means: Sequence[float], spreads: Sequence[float], ranked: Sequence[bool]) -> list[str]:
    r"""Return ``mean (spread)`` of a column, the best mean in bold, the second best underlined.

    Means that print alike are tied and look alike; where ``ranked`` is False a mean is neither.  NaN is a dash, and a
    spread that is NaN is left out.

    >>> highlighted([50.0, 52.0, 51.0], [math.nan, 0.5, math.nan], [True] * 3)
    ['50.00', '\\textbf{52.00} {\\scriptsize(0.50)}', '\\underline{51.00}']
    """
    printed = ["--" if math.isnan(mean) else f"{mean:.2f}" for mean in means]
    places = sorted({float(p) for p, one, mean in zip(printed, ranked, means, strict=True) if one and mean == mean})
    looks = {f"{place:.2f}": look for place, look in zip(places[:-3:-1], (r"\textbf", r"\underline"), strict=False)}
    cells = []
    for text, spread, one in zip(printed, spreads, ranked, strict=True):
        shown = f"{looks[text]}{{{text}}}" if one and text in looks else text
        cells.append(shown if math.isnan(spread) else rf"{shown} {{\scriptsize({spread:.2f})}}")
    return cells


def latex_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, label: str, rule_after: int = 0
) -> str:
    """Return a table over both columns of a paper; columns, cells and caption are LaTeX already.

    Args:
        rule_after: so many rows stand above a rule of their own, such as that of chance.
    """
    body = [" & ".join(row) + r" \\" for row in rows]
    if 0 < rule_after < len(body):
        body.insert(rule_after, r"\midrule")
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(columns) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(columns) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"
