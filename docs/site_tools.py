"""What the site needs beyond Sphinx and its extensions.

Formulas without a script, the API by module, code names that are links, and executed notebooks where there are some.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

import hpdval

ROOT = Path(hpdval.__file__).resolve().parent.parent
EXECUTED = ROOT / "runs/demo"  # where `make demo` leaves them: runs/demo/<notebook>/executed.ipynb
PROGRESS = re.compile(r"^.*\d%\|.*\n?", re.M)  # lines of progress bars
CODE_NAME = re.compile(r"(?:hpdval|metrics|models|losses|plots|tables)(?:\.\w+)+(?=\(|$)")


# -- formulas --------------------------------------------------------------------------------------------------------


def mathml(formula: str, **options: Any) -> str:
    """Return what browsers show by themselves, made by docutils' own converter; it knows all LaTeX but ``\\dots``."""
    return latex2mathml.tex2mathml(re.sub(r"\\dots\b", r"\\ldots", formula), **options)


def visit_inline_formula(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_formula(writer: Any, node: nodes.math_block) -> None:
    """Write a formula that stands alone; a wide one scrolls in its own box."""
    writer.body.append(f'<div class="formula">{mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


# -- the API ---------------------------------------------------------------------------------------------------------


def modules_of(name: str) -> list[str]:
    """Return the module, or the modules of the package in the order of their names, those of its folders included."""
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return [name]
    inside = [m.name for m in pkgutil.walk_packages(module.__path__, f"{name}.") if not m.name.endswith("__main__")]
    return [name, *sorted(inside)]


def canonical_name(name: str) -> str | None:
    """Return the name under which the API describes ``hpdval.evaluate``, or None if that is nothing of ours.

    >>> canonical_name("hpdval.evaluate")
    'hpdval.metrics.evaluate.evaluate'
    """
    parts = name.split(".")
    if parts[0] != "hpdval":
        parts = ["hpdval", *parts]
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        if inspect.ismodule(found):
            return found.__name__
        home, inner = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
        return f"{home}.{inner}" if home and inner and home.startswith("hpdval") else ".".join(parts)
    return None


def others() -> list[str]:
    """Return the modules and packages of ours that no page of the reference names."""
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md"))
    named = {name for names in re.findall(r"\{api-modules\} (.+)", pages) for name in names.split()}
    return sorted({f"hpdval.{module.name}" for module in pkgutil.iter_modules(hpdval.__path__)} - named)


class ApiModules(SphinxDirective):
    """``{api-modules} hpdval.metrics``: a section for each module with all that has a docstring.

    ``others`` stands for what no other page of the reference names.
    """

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return what autodoc makes of each module."""
        packages = others() if self.arguments[0] == "others" else self.arguments[0].split()
        names = [module for package in packages for module in modules_of(package)]
        text = "\n".join(
            f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :ignore-module-all:\n```\n"
            for name in names
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class PublicNames(SphinxDirective):
    """``{public-names}``: what ``import hpdval`` offers, with the first sentence of each docstring."""

    def run(self) -> list[nodes.Node]:
        """Return a table; each name leads to its full description."""
        return self.parse_text_to_nodes("\n".join(["| name | what it is or does |", "|---|---|", *self._rows()]))

    def _rows(self) -> Iterator[str]:
        for name in hpdval.__all__:
            if not name.startswith("_"):
                words = inspect.getdoc(getattr(hpdval, name)) or ""
                first = words.split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")
                first = re.sub(r":\w+:(?=`)", "", first)  # a role of reStructuredText
                yield f"| `hpdval.{name}` | {first} |"


def breakable(name: nodes.literal) -> nodes.literal:
    """Return a name that a narrow table may break after its dots and underscores, and nowhere else."""
    copy = nodes.literal("", "", **name.attributes)
    for part in re.findall(r"[^._]*[._]*", name.astext()):
        copy += [nodes.Text(part), nodes.raw("", "<wbr>", format="html")]
    return copy


class LinkCodeNames(SphinxPostTransform):
    """Make ``hpdval.metrics.evaluate`` a link to its description, where there is one; it may break at dots."""

    default_priority = 5  # before references are resolved

    def run(self, **_: Any) -> None:
        """Replace each such name that stands in no link yet."""
        described = self.env.domains["py"].data["objects"]
        for node in list(self.document.findall(nodes.literal)):
            match = CODE_NAME.match(node.astext())
            if not match or isinstance(node.parent, nodes.reference | pending_xref | nodes.title):
                continue
            target = canonical_name(match[0])
            if target in described:
                words = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refdoc": self.env.docname}
                node.replace_self(pending_xref("", breakable(node), **words))


def find_other_name(app: Sphinx, env: Any, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    """Lead ``hpdval.load_clip``, and a name that a module imports, to where it is described."""
    domain = env.domains["py"]
    asked = [node["reftarget"], f"{node.get('py:module')}.{node['reftarget']}"] if node.get("refdomain") == "py" else []
    for name in filter(None, map(canonical_name, asked)):
        if name != node["reftarget"] and name in domain.data["objects"]:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return None


def skip_foreign(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a module or class has from another package: scipy's functions, ``set`` of matplotlib's artists."""
    return True if (getattr(member, "__module__", None) or "hpdval").split(".")[0] != "hpdval" else None


def keep_blocks(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Show what is indented in a module's docstring as it stands: a format, a formula, a file."""
    if what == "module":
        text = re.sub(r"(?m)^(?=\S)(.+)\n\n(?=    )", r"\1\n\n::\n\n", "\n".join(lines))
        lines[:] = text.splitlines()


# -- notebooks -------------------------------------------------------------------------------------------------------


def executed_copy(notebook: Path) -> Path | None:
    """Return what ``make demo`` made of this very notebook, if it did; a copy of other sources does not count."""
    copy = EXECUTED / notebook.stem / "executed.ipynb"
    if not copy.exists():
        return None
    own, run = (json.loads(path.read_text(encoding="utf-8"))["cells"] for path in (notebook, copy))
    run = [cell for cell in run if "injected-parameters" not in cell["metadata"].get("tags", [])]
    return copy if [c["source"] for c in own] == [c["source"] for c in run] else None


def show_executed(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the executed copy in the place of a notebook, and say below its title which of the two it is."""
    notebook = ROOT / f"{docname}.ipynb"
    if not docname.startswith("notebooks/") or not notebook.exists():
        return
    copy = executed_copy(notebook)
    app.env.note_dependency(str(copy or EXECUTED / notebook.stem / "executed.ipynb"))
    shown = json.loads((copy or notebook).read_text(encoding="utf-8"))
    words = (
        f"*Shown with the outputs of `make demo`, from `{copy.relative_to(ROOT)}`.*"
        if copy
        else "*Shown without outputs. Run it with "
        f"`hpdval run {notebook.stem.split('_')[0]}`, or in JupyterLab with `make lab`; "
        "notebooks that `make demo` has run are shown with theirs.*"
    )
    note = {"cell_type": "markdown", "id": "which-copy", "metadata": {}, "source": [words]}
    shown["cells"].insert(1, note)
    for output in (output for cell in shown["cells"] for output in cell.get("outputs", [])):
        if output["output_type"] == "stream":
            output["text"] = PROGRESS.sub("", "".join(output["text"]))
    content[0] = json.dumps(shown).replace(f"{ROOT}/", "")  # no folder of the machine that built the site


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx about all of it."""
    app.add_html_math_renderer("mathml", (visit_inline_formula, None), (visit_formula, None))
    app.add_directive("api-modules", ApiModules)
    app.add_directive("public-names", PublicNames)
    app.add_post_transform(LinkCodeNames)
    app.connect("missing-reference", find_other_name)
    app.connect("autodoc-process-docstring", keep_blocks)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("source-read", show_executed)
    return {"version": hpdval.__version__, "parallel_read_safe": True, "parallel_write_safe": True}
