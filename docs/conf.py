"""Sphinx configuration; builds without a network."""

from __future__ import annotations

import cifarnet

project = "cifarnet"
author = "The cifarnet authors"
copyright = "2026, The cifarnet authors"
release = version = cifarnet.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"cifarnet {version}"
exclude_patterns = ["_build", "make_tables.py"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
default_role = "any"
python_use_unqualified_type_names = True

nitpicky = True
# Names of other libraries, whose inventories lie on the network, and aliases that autodoc spells out.
nitpick_ignore_regex = [
    ("any", r"(torch|torchvision|dataclasses|matplotlib)\..*"),
    ("py:.*", r"(torch|torchvision|numpy|npt|matplotlib|PIL|v2|nn|collections|pathlib|dataclasses)(\..*)?"),
    ("py:.*", r"(Path|Tensor|Any|Axes|Figure|Literal|Self|optional)"),
    ("py:.*", r"(Images|Labels|Logits|Json|Mix|ImageLike|ImageSource|Family|Schedule|Data|Stateful)"),
]
