"""Sphinx settings of the site (``make docs``); what is special to us is in ``site_tools.py``.

The source folder is the repository itself: links between pages, reports and files are the same here, in a forge's
viewer and on the site.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # the package that is described, and site_tools

import hpdval  # noqa: E402

project = "hpdval"
author = "The hpdval developers"
copyright = "2026, the hpdval developers"
version = release = hpdval.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_tools"]
root_doc = "docs/index"
include_patterns = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**.md",
    "hpdval/assets/*.md",
    "notebooks/*.ipynb",
    "reports/*.md",
    "reports/*/report.md",
    "reports/benchmarks/*.md",
]
exclude_patterns = [".*", "**/.*", "build", "dist", "runs", "**/__pycache__"]  # not even looked into

# Warnings are errors (the Makefile says -W), and so is a reference into the package that leads nowhere.
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|data|attr|obj)", r"(?!hpdval\.).*"),  # types of other packages: the site is built without a network
    ("py:class", r"hpdval\.[\w.]+\.[A-Z]"),  # type variables
    ("py:(data|attr)", r".*"),  # constants and fields have comments, no docstrings
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_url_schemes = ("http", "https", "mailto")
suppress_warnings = ["myst.header"]  # a report may begin a level deeper

# Notebooks are shown, never run: site_tools takes executed copies where `make demo` left some.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # from a CDN otherwise
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True

add_module_names = False  # the heading has it
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "NDArray": "NDArray"}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

html_theme = "furo"  # no script, font or style from elsewhere; light, dark, phone and print
html_title = "hpdval"
html_math_renderer = "mathml"  # site_tools; Sphinx's own choice loads MathJax from a CDN
templates_path = ["_templates"]
html_additional_pages = {"index": "to_first_page.html"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_use_index = True
pygments_style = "a11y-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#7db8f0", "color-brand-content": "#7db8f0"},
}
linkcheck_timeout = 20
