"""The report as Markdown and as one page of HTML that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import pandas as pd
from jinja2 import Environment, StrictUndefined

from hpdval.assets import asset_path
from hpdval.report.document import Document, Table
from hpdval.tables import to_markdown


def html_page(document: Document, drawings: Mapping[str, bytes]) -> str:
    """Return ``index.html``: figures are embedded, and whatever a class or a label is called is escaped.

    Args:
        drawings: the SVG of each picture by its name.
    """
    template = asset_path("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    images = {name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in drawings.items()}
    return page.render(document=document, images=images) + "\n"


def markdown_page(document: Document, kind: str) -> str:
    """Return ``report.md``, which shows the figures in the folder; ``kind`` is their suffix, empty to name none."""
    return "\n".join(_lines(document, kind)) + "\n"


def _lines(document: Document, kind: str) -> Iterator[str]:
    yield from (f"# {_inline(document.title)}", "")
    for sentence in document.method:
        yield from (sentence, "")
    yield from _table(document.summary)
    for section in document.sections:
        yield from (f"## {_inline(section.title)}", "")
        if section.claim:
            yield from (f"Claim: {_inline(section.claim)}", "")
        for table in section.tables:
            yield from _table(table)
        yield from (f"- {_inline(note)}" for note in section.notes)
        yield from [""] * bool(section.notes)
        for picture in section.pictures if kind else ():
            yield from (f"![{_inline(picture.caption)}](figures/{picture.name}.{kind})", "")
    yield from ("## What is missing", "")
    yield from (f"- {_inline(line)}" for line in document.missing or ("nothing: every run asked for is finished",))
    yield from ("", "## Where it comes from", "", f"Built by {document.code} from stored predictions alone.", "")
    for command in document.commands:
        yield from (f"    {command}", "")
    yield from _table(document.provenance)


def _table(table: Table) -> Iterator[str]:
    if table.shown is not None:
        yield from (_inline(table.caption), "", markdown_table(table.shown), "")


def markdown_table(shown: pd.DataFrame) -> str:
    """Return a table of text whose cells Markdown shows as they are."""
    return to_markdown(shown.map(_inline))


def _inline(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for special in ("\\", "`", "*", "_", "$", "]("):
        text = text.replace(special, f"\\{special}")
    return text
