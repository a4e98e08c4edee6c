"""Sphinx configuration; builds without a network."""

from __future__ import annotations

import argparse

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import cifarnet
from cifarnet.cli.arguments import build_parser

project = "cifarnet"
author = "The cifarnet authors"
copyright = "2026, The cifarnet authors"
release = version = cifarnet.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"cifarnet {version}"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
default_role = "any"
python_use_unqualified_type_names = True

nitpicky = True
# Three kinds of names have no target here. A name of our own that is misspelt is still an error.
nitpick_ignore_regex = [
    # Other libraries, whose inventories lie on the network.
    ("any|py:.*", r"(torch|torchvision|v2|nn|numpy|npt|matplotlib|PIL)(\..*)?"),
    ("any|py:.*", r"(collections|contextlib|dataclasses|pathlib)(\..*)?"),
    ("py:.*", r"(Path|Tensor|Any|Axes|Figure|Literal|Self|optional)"),
    # Type aliases that are not public. The reference explains them in words.
    ("py:class", r"(Images|Labels|Logits|Json|Data|Family|Capture|BatchTransform|Metric)"),
]


class CommandHelp(SphinxDirective):
    """The usage of every command, a section each, as the program itself prints it."""

    def run(self) -> list[nodes.Node]:
        """In the order of ``cifarnet --help``."""
        return [command_section(name, parser) for name, parser in build_parser()[1].items()]


def command_section(name: str, parser: argparse.ArgumentParser) -> nodes.section:
    """Title and usage."""
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=88)
    text = parser.format_help()
    section = nodes.section(ids=[nodes.make_id(f"command {name}")])
    section += nodes.title(text=f"cifarnet {name}")
    section += nodes.literal_block(text, text, language="text")
    return section


def setup(app: Sphinx) -> None:
    """Register the one directive of this site."""
    app.add_directive("command-help", CommandHelp)
