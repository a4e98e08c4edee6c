"""The project is written in plain words: no forbidden words, and docstrings that begin with a verb or a noun."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("src", "docs", "examples", "tests", ".github", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".yml") and path != Path(__file__)
)
FILES += [ROOT / "README.md", ROOT / "CHANGELOG.md"]
#: Words that the field does not use, or that hide who does what.
WORDS = re.compile(
    r"\b(taken for|held out|unbroken|foreign (iterable|batch)|told|goes on|begins? anew|anew|judged?|as above|"
    r"nobody|somebody|whoever|shall|is looked (at|for)|looked at|who may|lies? at|whatever|of its own|no better)\b",
    flags=re.IGNORECASE,
)
#: Words that begin a question instead of a statement.
OPENINGS = {"What", "How", "Where", "Which", "Whether", "Of", "Whatever", "Who", "When", "That", "Killed"}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def faults(path: Path) -> Iterator[str]:
    """Yield each line with a forbidden word, and each docstring with a forbidden opening."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := WORDS.search(line):
            yield f"{path.relative_to(ROOT)}:{number}: {match[0]!r}"
    for number, text in docstrings(path) if path.suffix == ".py" else ():
        if re.split(r"\W", text, maxsplit=1)[0] in OPENINGS:
            yield f"{path.relative_to(ROOT)}:{number}: docstring begins with {text.split()[0]!r}"


def test_text_has_no_forbidden_words() -> None:
    assert len(FILES) > 100
    assert not [fault for path in FILES for fault in faults(path)]


@pytest.mark.parametrize("text", ["It is told.", "Nobody knows.", "images held out", "Images lie at the end, lies at"])
def test_forbidden_words_are_found(text: str) -> None:
    assert WORDS.search(text)
