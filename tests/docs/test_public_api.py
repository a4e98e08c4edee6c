"""Every public name is documented, on a reference page, and as committed. mypy checks the annotations."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from public_api import callables, is_ours, public_names, snapshot

ROOT = Path(__file__).resolve().parents[2]
#: What a page documents: the directive's target.
DIRECTIVE = re.compile(r"^\.\. (?:auto(?:function|class|data|exception)|py:data):: (\S+)$", flags=re.MULTILINE)


def documented() -> dict[str, str]:
    """Return the page of every name that a reference page documents."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    found = [(name, page.name) for page in pages for name in DIRECTIVE.findall(page.read_text())]
    assert len(found) == len(dict(found)), "a name is documented twice"
    return dict(found)


def resolve(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_public_api_equals_the_committed_one() -> None:
    committed = (ROOT / "tests" / "docs" / "public_api.txt").read_text().splitlines()
    now = snapshot().splitlines()
    gone = "\n".join(line for line in committed if line not in now)
    new = "\n".join(line for line in now if line not in committed)
    assert now == committed, (
        f"gone or changed:\n{gone}\nnew:\n{new}\n"
        "Write a line in CHANGELOG.md, then: python tests/docs/public_api.py > tests/docs/public_api.txt"
    )


def test_every_public_name_is_on_a_reference_page() -> None:
    pages = documented()
    values = {id(value) for value in map(resolve, pages) if is_ours(value)}
    missing = []
    for path, value in public_names().items():
        module, _, name = path.rpartition(".")
        if is_ours(value):
            there = id(value) in values
        else:  # data and aliases of types may be documented where they are defined, below the same package
            there = any(page.startswith(module) and page.rpartition(".")[2] == name for page in pages)
        missing += [] if there else [path]
    assert not missing, "add it to the page of its topic in docs/reference"


def test_every_name_on_a_reference_page_is_public() -> None:
    for path in documented():
        module, _, name = path.rpartition(".")
        assert name in importlib.import_module(module).__all__ or path in public_names(), path


def test_every_public_name_has_a_docstring() -> None:
    silent = [path for path, value in public_names().items() if is_ours(value) and not own_doc(value)]
    silent += [path for path, _, doc in callables() if not doc]
    assert not silent


def test_every_public_argument_is_explained() -> None:
    silent = []
    for path, function, doc in callables():
        section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", doc, flags=re.MULTILINE | re.DOTALL)
        explained = re.findall(r"^ {4}\**(\w+):", section[1] if section else "", flags=re.MULTILINE)
        names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
        silent += [f"{path}({name})" for name in names if name not in explained]
    assert not silent


def own_doc(value: object) -> str | None:
    """Return the docstring, unless it is that of a base class or the signature that `dataclass` writes."""
    doc = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    return None if doc is None or doc.startswith(f"{getattr(value, '__name__', '')}(") else doc


@pytest.mark.parametrize("path", [path for path in documented() if not is_ours(resolve(path))])
def test_every_constant_has_a_comment_that_the_page_shows(path: str) -> None:
    module, _, name = path.rpartition(".")
    page = (ROOT / "docs" / "reference" / documented()[path]).read_text()
    if f"py:data:: {path}\n\n   " in page:
        return
    lines = Path(str(importlib.import_module(module).__file__)).read_text().splitlines()
    line = next(i for i, text in enumerate(lines) if re.match(rf"{name}\b.* = ", text))
    assert lines[line - 1].startswith("#:")
