"""The code blocks of the README and of the site, and what is to be done with each.

A block of Python, or of commands, is run by `tests/test_pages.py`, unless a comment directly above its fence says
otherwise and why:

    <!-- not run: it needs a GPU -->
    <!-- parsed: it takes an hour -->           (commands: the arguments are checked, nothing is run)
    <!-- run by: tests/export/test_export.py -->

A block of ``text`` directly below one that was run is what it prints: each line has to be among the lines that were
printed, whatever the numbers are; ``...`` stands for anything.

    python tests/pages.py README.md        # prints the commands and the Python that a reader types, as one script
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKER = re.compile(r"<!-- (not run|parsed|run by): (.+?) -->")
DIRECTIVES = ("{eval-rst}", "{toctree}", "{literalinclude}", "{figure}", "{image}", "{command-help}", "{note}")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what it is, and the comment above it."""

    page: str
    line: int
    language: str
    text: str
    marker: str | None = None
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"


def pages() -> list[str]:
    """Every page, as paths from the root."""
    return ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def read_blocks(page: str) -> list[Block]:
    return list(parse_blocks(page, (ROOT / page).read_text()))


def parse_blocks(page: str, text: str) -> Iterator[Block]:
    lines = iter(enumerate(text.splitlines(), 1))
    above = ""
    for number, line in lines:
        fence = re.fullmatch(r"(`{3,}|~{3,})\s*(\S*)(.*)", line)
        if fence:
            content = []
            for _, inside in lines:
                if inside.rstrip() == fence[1]:
                    break
                content.append(inside)
            else:
                raise AssertionError(f"{page}, line {number}: the block does not end")
            found = MARKER.fullmatch(above)
            marker, reason = (found[1], found[2]) if found else (None, "")
            argument = f"{fence[3].strip()}\n" if fence[2].startswith("{") else ""
            yield Block(page, number, fence[2], argument + "\n".join(content), marker, reason)
        elif line.lstrip().startswith(("```", "~~~")):
            raise AssertionError(f"{page}, line {number}: a fence must begin its line, or its block is not run")
        above = line.strip() if line.strip() or fence else above


def matches(expected: str, printed: str) -> bool:
    """Whether a line is the one that a page shows, whatever the numbers are."""

    def mask(line: str) -> str:
        return re.sub(r"\d[\d.,]*\d|\d", "#", line.strip())

    pattern = ".*".join(re.escape(part) for part in mask(expected).split("..."))
    return re.fullmatch(pattern, mask(printed)) is not None


def script(page: str) -> str:
    """What a reader types, for a shell: commands as they are, Python in one process at the end."""
    blocks = [block for block in read_blocks(page) if block.marker is None]
    commands = [block.text for block in blocks if block.language == "console"]
    python = "\n".join(block.text for block in blocks if block.language == "python")
    return "\n".join(["set -eux", *commands, f"python -c {shlex.quote(python)}"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write("".join(map(script, sys.argv[1:])))
