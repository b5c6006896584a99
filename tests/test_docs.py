"""The site builds, links lead somewhere, Python runs, commands parse, and numbers are those of the reports."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import save_file

import hpdval
from hpdval import cli, recipes, tables
from hpdval.commands import joined
from hpdval.data import scenes
from hpdval.models import load_clip
from hpdval.notebook_parameters import check_parameters, find_notebook, notebook_parameters
from hpdval.overrides import named_values
from hpdval.rival_recipes import RIVAL_RECIPES
from hpdval.sweep.grid import read_grid

ROOT = Path(__file__).resolve().parent.parent
READ = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")  # what people copy commands from
PAGES = sorted(path for pattern in READ for path in ROOT.glob(pattern))
LINKED = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("reports/**/*.md"), *ROOT.glob("hpdval/assets/*.md")})
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
NOT_RUN = re.compile(
    r"^<!-- not run: (\S.*) -->$", re.M
)  # the line above a Python block that is not run, with the reason


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def markdown(path: Path) -> str:
    """The text of a page, or the text cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


# -- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: every warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs",
         "-d", folder / "doctrees", ROOT, folder / "html"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "html"


class Html(HTMLParser):
    """What a page loads by itself, where it leads, and what can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.without_alt: list[str] = []
        self.headings: list[int] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(values.get("href", ""))
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "object"):
            self.loaded += [values[name] for name in ("src", "data", "srcset") if values.get(name)]
        if tag == "img" and "alt" not in values:
            self.without_alt.append(values.get("src", ""))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="session")
def html(site: Path) -> dict[Path, Html]:
    return {path: Html(path) for path in site.rglob("*.html") if not path.is_relative_to(site / "_downloads")}


def test_the_site_has_every_page_and_begins_at_index(site: Path) -> None:
    assert 'url=docs/index.html"' in (site / "index.html").read_text(encoding="utf-8")
    for path in [*(page for page in PAGES if page.name != "README.md"), *NOTEBOOKS]:
        assert (site / path.relative_to(ROOT)).with_suffix(".html").exists(), path


def test_the_site_loads_nothing_from_elsewhere(site: Path, html: dict[Path, Html]) -> None:
    for path, page in html.items():
        foreign = [
            source for source in page.loaded if urlsplit(source).scheme not in ("", "data") or "//" in source[:2]
        ]
        assert not foreign, path
    for path in site.rglob("*.css"):
        assert not re.search(r"""(url\(\s*["']?|@import\s+["'])(https?:)?//""", path.read_text(encoding="utf-8")), path


def test_links_of_the_site_lead_somewhere(site: Path, html: dict[Path, Html]) -> None:
    lost = []
    for path, page in html.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or not link:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = target.exists()
            if found and parts.fragment and target in html:
                found = unquote(parts.fragment) in html[target].anchors
            if not found:
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


def test_pages_can_be_read_by_all(html: dict[Path, Html]) -> None:
    """A title, headings that skip no level, and words for every picture; formulas are text, not pictures."""
    for path, page in html.items():
        if path.name in ("genindex.html", "py-modindex.html", "search.html") or not page.headings:
            continue
        assert page.headings.count(1) == 1, path
        assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False)), (path, page.headings)
        assert not page.without_alt, path
    assert "<math " in next(p for p in html if p.stem.startswith("02_")).read_text(encoding="utf-8")


def test_the_reference_describes_every_public_name(site: Path, html: dict[Path, Html]) -> None:
    described = {anchor for page in html.values() for anchor in page.anchors}
    for name in hpdval.__all__:
        if not name.startswith("_"):
            thing = getattr(hpdval, name)
            assert f"{thing.__module__}.{thing.__qualname__}" in described
    for package in ("data", "metrics", "losses", "models", "scoring", "training", "plots", "tables"):
        page = next(page for path, page in html.items() if path == site / f"docs/api/{package}.html")
        modules = [path.stem for path in (ROOT / "hpdval" / package).glob("[a-z]*.py")]
        assert {f"module-hpdval.{package}.{module}" for module in modules} <= page.anchors
        module = importlib.import_module(f"hpdval.{package}")
        public = [getattr(module, name) for name in getattr(module, "__all__", ())]
        names = {f"{item.__module__}.{item.__qualname__}" for item in public if hasattr(item, "__qualname__")}
        assert {name for name in names if name.startswith("hpdval")} - described <= {"hpdval.losses.build.Loss"}


@pytest.fixture
def site_tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("site_tools")


def test_a_notebook_is_shown_as_it_was_run_only_if_it_is_still_the_same(
    site_tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_tools, "EXECUTED", tmp_path)
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    assert site_tools.executed_copy(NOTEBOOKS[0]) is None, "not run"
    given = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": ["seed = 1"], "outputs": []}
    copy = tmp_path / NOTEBOOKS[0].stem / "executed.ipynb"
    copy.parent.mkdir()
    copy.write_text(json.dumps({**notebook, "cells": [notebook["cells"][0], given, *notebook["cells"][1:]]}))
    assert site_tools.executed_copy(NOTEBOOKS[0]) == copy
    notebook["cells"][2]["source"] = ["something = 'else'"]
    copy.write_text(json.dumps(notebook))
    assert site_tools.executed_copy(NOTEBOOKS[0]) is None, "run, and changed since"


def test_names_lead_to_the_module_that_has_them(site_tools: Any) -> None:
    assert site_tools.canonical_name("hpdval.evaluate") == "hpdval.metrics.evaluate.evaluate"
    assert site_tools.canonical_name("metrics.bootstrap") == "hpdval.metrics.statistics.bootstrap"
    assert site_tools.canonical_name("hpdval.run.Run.finish") == "hpdval.run.Run.finish"
    assert site_tools.canonical_name("hpdval.nothing_of_the_kind") is None


def test_formulas_become_mathml(site_tools: Any) -> None:
    shown = site_tools.mathml(r"t = [v_1, \dots, v_M]")
    assert shown.startswith("<math ")
    assert "\N{HORIZONTAL ELLIPSIS}" in shown


# -- links in the repository -----------------------------------------------------------------------------------------


def tokens(text: str) -> Iterator[Any]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or ()


def links(path: Path) -> list[str]:
    found = [token.attrGet("href") or token.attrGet("src") for token in tokens(markdown(path))]
    return [str(link) for link in found if link]


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that a forge and MyST both make of the headings."""
    titles = re.findall(r"^#{1,6} +(.+?)\s*$", re.sub(r"^```.*?^```", "", markdown(path), flags=re.M | re.S), re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


@pytest.mark.parametrize("path", [*LINKED, *NOTEBOOKS], ids=name_of)
def test_links_lead_to_a_file_and_a_heading(path: Path) -> None:
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:  # `make docs ARGS="-b linkcheck"` asks them
            assert parts.scheme in ("http", "https"), link
            assert re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc), link
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        assert target.is_file(), f"{link} is no file"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert not parts.fragment or parts.fragment in anchors(target), f"{link}: there is no such heading"


# -- Python ----------------------------------------------------------------------------------------------------------


class Snippet(NamedTuple):
    line: int
    code: str
    not_run: str


def snippets(path: Path) -> list[Snippet]:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for token in tokens("\n".join(lines)):
        if token.type == "fence" and token.info.strip() == "python":
            start = token.map[0]
            reason = NOT_RUN.fullmatch(lines[start - 1])
            found.append(Snippet(start + 2, token.content, reason[1] if reason else ""))
    return found


WITH_SNIPPETS = [page for page in PAGES if any(not snippet.not_run for snippet in snippets(page))]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader, all of it small: photographs with a CSV, weights, and what `make demo` and runs left."""
    folder = tmp_path_factory.mktemp("reader")
    world = scenes.load_scenes(train=24, test=20)
    (folder / "photos").mkdir()
    for name, split in (("train", world.train), ("test", world.test)):
        rows = []
        for number in range(len(split)):
            Image.fromarray(split.image(number)).save(folder / f"photos/{name}-{number}.png")
            rows.append(f"{name}-{number}.png,{('cat', 'cat;dog', 'red panda', '')[number % 4]}")
        (folder / f"photos/{name}.csv").write_text("\n".join(["path,labels", *rows]) + "\n", encoding="utf-8")
    for name in "ab":
        Image.fromarray(world.test.image(0)).save(folder / f"{name}.jpg")
    small = load_clip("scenes")
    (folder / "my_model.json").write_text(json.dumps(small.config), encoding="utf-8")
    save_file(
        {name: value.contiguous() for name, value in small.model.state_dict().items()}, folder / "my_model.safetensors"
    )
    recipe = recipes.get_recipe("scenes", **{"stage1.epochs": 1, "stage2.epochs": 1})
    runs = hpdval.train(world, recipe, run=folder / "made", show=False)
    for name in ("demo/03_stage1_dual_view_alignment", "lr", "lr/stage1"):
        shutil.copytree(runs["stage 1"], folder / "runs" / name)
    shutil.copytree(runs["stage 2"], folder / "runs/demo/04_stage2_hierarchical_prompts")
    recipe = recipes.get_recipe("scenes", val=0.2, stages="stage2", **{"stage2.epochs": 1})
    world = hpdval.load_dataset("scenes-lt", val=0.2, train=24, test=20)
    hpdval.train(world, recipe, run=folder / "runs/mine", show=False)
    return folder


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_python_of_the_pages_runs(page: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, in one namespace, on few images and for one epoch."""
    folder = tmp_path / "reader"
    shutil.copytree(reader, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(scenes, "load_scenes", functools.partial(scenes.load_scenes, train=24, test=20))
    short = recipes.scenes()
    short = replace(short, stage1=replace(short.stage1, epochs=1), stage2=replace(short.stage2, epochs=1))
    monkeypatch.setitem(recipes.RECIPES, "scenes", lambda: short)
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in snippets(page):
        if not snippet.not_run:
            code = "\n" * (snippet.line - 1) + snippet.code  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec"), names)


@each_page
def test_python_of_the_pages_compiles_and_says_why_it_is_not_run(page: Path) -> None:
    for snippet in snippets(page):
        compile(snippet.code, str(page), "exec")
    marks = NOT_RUN.findall(page.read_text(encoding="utf-8"))
    assert len(marks) == sum(bool(snippet.not_run) for snippet in snippets(page)), "a mark stands above no Python block"


def is_python(text: str) -> bool:
    """Whether a block does something in Python; a tree of files, a CSV or a command does not parse, or does nothing."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:
        return bool(re.search(r"^(>>> |import \w+$|from [\w.]+ import )", text, re.M))
    return any(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Call) for node in nodes)


@each_page
def test_python_is_fenced_so_that_it_is_run(page: Path) -> None:
    for token in tokens(markdown(page)):
        if token.type == "code_block" or (token.type == "fence" and not token.info.strip()):
            assert not is_python(token.content), f"line {token.map[0] + 1}: begin the block with ```python"


@each_page
def test_code_that_pages_name_is_there(page: Path) -> None:
    for name in re.findall(r"`(hpdval(?:\.\w+)+)(?=[`(])", page.read_text(encoding="utf-8")):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            with contextlib.suppress(ModuleNotFoundError):
                functools.reduce(getattr, parts[cut:], importlib.import_module(".".join(parts[:cut])))
                break


# -- commands --------------------------------------------------------------------------------------------------------


def commands(path: Path) -> list[tuple[str, bool]]:
    """Lines of blocks and code within sentences; True for a line that must be whole."""
    found = []
    for token in tokens(markdown(path)):
        if token.type == "code_block" or (
            token.type == "fence" and token.info.strip() in ("", "sh", "bash", "console")
        ):
            lines = token.content.replace("\\\n", " ").splitlines()
            found += [(line.strip().removeprefix("$ "), True) for line in lines]
        elif token.type == "code_inline":
            found.append((token.content, False))
    return found


def hpdval_words(line: str) -> list[str] | None:
    """The arguments of `hpdval ...`, behind variables or torchrun, or None if the line is no such command."""
    match = re.match(r"(?:\w+=\S+ )*(?:hpdval(?: |$)|(?:srun )?torchrun .*-m hpdval\.cli )", line)
    return shlex.split(line[match.end() :], comments=True) if match else None


HPDVAL = [
    pytest.param(words, whole, id=f"{name_of(page)}: {line[:60]}")
    for page in PAGES
    for line, whole in commands(page)
    if (words := hpdval_words(line)) is not None
]


def test_commands_are_found() -> None:
    """The search finds the commands in a block, over two lines, behind torchrun and in a sentence."""
    assert len(HPDVAL) > 60
    assert sum(whole for _, whole in (param.values for param in HPDVAL)) > 30


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, int]:
    """The parser of a command and how many words name it."""
    parser = cli.build_parser()
    for depth, word in enumerate(words):
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not inner:
            return parser, depth
        assert word in inner[0].choices, f"there is no command {word!r}"
        parser = inner[0].choices[word]
    return parser, len(words)


@pytest.mark.parametrize(("words", "whole"), HPDVAL)
def test_commands_of_the_pages_parse(words: list[str], whole: bool) -> None:
    """With the real parser, without being run; where "..." leaves something out, its options must exist."""
    given = [word for word in words if not word.strip("[]").startswith("...")]
    if words in ([], ["--version"], ["--debug"]):
        return
    parser, named = parser_of(given)
    options = {option for action in parser._actions for option in action.option_strings}
    assert {word.split("=")[0] for word in joined(given)[named:] if re.match(r"--?[a-z]", word)} <= options
    if not whole or given != words:
        return
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            parsed = cli.build_parser().parse_args(joined(given))
        except SystemExit:
            pytest.fail(complaint.getvalue())
    check_values(given[0], parsed)


def check_values(command: str, parsed: argparse.Namespace) -> None:
    """Parameters have names, types and ranges that exist."""
    if command in ("run", "sweep") and parsed.notebook != "NOTEBOOK":
        values = named_values(parsed.parameter)
        known = notebook_parameters(find_notebook(parsed.notebook))
        check_parameters(find_notebook(parsed.notebook), {**values, **({"seed": 0} if "seed" in known else {})})
    if command == "train":
        recipes.get_recipe(parsed.recipe, dataset=parsed.source, **named_values(parsed.parameter))


FIELDS = [
    pytest.param(line, id=f"{name_of(page)}: {line}")
    for page in PAGES
    for line, _ in commands(page)
    if re.match(r"-p \w", line)
]


@pytest.mark.parametrize("line", FIELDS)
def test_fields_that_sentences_name_exist(line: str) -> None:
    values = named_values([word for word in shlex.split(line) if word != "-p"])
    recipes.get_recipe("hpdval", **{name: value for name, value in values.items() if name not in ("recipe", "root")})


GRIDS = [
    pytest.param(token.content, id=f"{name_of(page)}: {token.content.splitlines()[0]}")
    for page in PAGES
    for token in tokens(markdown(page))
    if token.type == "fence" and token.info.strip() == "yaml"
]


@pytest.mark.parametrize("text", GRIDS)
def test_grids_of_the_pages_can_be_swept(text: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    assert read_grid(tmp_path / "grid.yaml").questions


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for line, _ in commands(page):
        match = re.match(r"make ([a-z-]+)\b", line)
        assert not match or match[1] in {*targets, "-C"}, line


# -- numbers ---------------------------------------------------------------------------------------------------------

RECIPES_PAGE = ROOT / "docs/guide/recipes.md"


def rows(heading: str) -> list[list[str]]:
    """The table below a heading of the page of recipes, without its two first lines."""
    text = RECIPES_PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_of_recipes_names_each_and_no_other() -> None:
    page = RECIPES_PAGE.read_text(encoding="utf-8")
    head = page.split("\n## ")[0]
    own = [name for name, recipe in recipes.RECIPES.items() if recipe().rival is None]
    assert re.findall(r"^\| `([\w-]+)` \|", head, re.M) == own
    assert [row[0].strip("`") for row in rows("Commands and times")] == own
    assert {row[0].strip("`") for row in rows("Measured")} == set(own)


def test_the_page_of_rivals_names_each_and_no_other() -> None:
    table = (ROOT / "docs/rivals.md").read_text(encoding="utf-8").split("## The methods")[1].split("\n\n")[2]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)] == list(RIVAL_RECIPES)


@pytest.mark.parametrize("row", rows("Measured"), ids=lambda row: " ".join(row[:2]))
def test_measured_numbers_stand_in_the_report_they_name(row: list[str]) -> None:
    recipe, after, total, source = row
    link = re.search(r"\]\((.+?)\)", source)
    assert link
    report = (RECIPES_PAGE.parent / link[1]).read_text(encoding="utf-8")
    mark = " ab" if "chosen on test images" in source else ""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    if any(cells[0] == recipe.strip("`") for cells in lines):
        lines = [cells[1:] for cells in lines if cells[0] == recipe.strip("`")]
    assert any(cells[0] == after and re.match(re.escape(total + mark) + r"( \[|$)", cells[1]) for cells in lines)


@pytest.mark.parametrize("row", rows("Published, not ours"), ids=lambda row: row[0])
def test_published_numbers_are_the_published_ones(row: list[str]) -> None:
    published = tables.published_results(row[0].strip("`"))
    own = published[published["method"] == "HP-DVAL"].iloc[0]
    assert [f"{own[name]:.2f}" for name in ("total", "head", "medium", "tail")] == row[1:]
    assert (own["readout"], own["selection"]) == ("l2", "best on test")
