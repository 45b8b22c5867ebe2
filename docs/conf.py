"""Sphinx's configuration: pages are MyST Markdown, the reference comes from docstrings, no network is asked."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

# First here: autodoc imports with TYPE_CHECKING set, as a type checker would, and pydantic's models do not survive it.
import fastapi  # noqa: E402, F401

import bayeslora  # noqa: E402

project = "bayeslora"
author = copyright = "the bayeslora contributors"
version = release = bayeslora.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx-mathjax-offline",
    "outside",
    "rooms",
    "short_names",
    "small_inventories",
]
exclude_patterns = ["_*"]
templates_path = ["_templates"]
nitpicky = True

# Pages
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_output_stderr = "remove"

# Reference
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

# What the reference names and nobody documents. Everything else that leads nowhere is an error.
nitpick_ignore_regex = [
    (r"py:class", r"([\w.]+\.)?[A-Z]|.*\.Item"),  # variables of types: documented where they are bound
]

# Look
html_theme = "pydata_sphinx_theme"
html_title = "bayeslora"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_sidebars = {page: [] for page in ("index", "metrics", "glossary", "faq")}  # nothing is below them
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_nav_level": 1,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
