"""Code blocks of the README and of the site.

`tests/docs/test_code_blocks.py` runs a block of Python or of commands, unless a comment directly above its fence gives
a reason:

    <!-- not run: it needs a GPU -->
    <!-- parsed: it takes an hour -->           (commands: only the arguments are checked)
    <!-- run by: tests/export/test_export.py -->

A block of ``text`` directly below such a block is its output. Each of its lines must have been printed, except for
the numbers in it. ``...`` stands for any text.

    python tests/docs/markdown_blocks.py README.md        # prints the blocks as one script
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"<!-- (not run|parsed|run by): (.+?) -->")
DIRECTIVES = ("{eval-rst}", "{toctree}", "{literalinclude}", "{figure}", "{image}", "{command-help}", "{note}")


@dataclass(frozen=True)
class Block:
    """A fenced block, with the comment above it."""

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
    """Return the paths of all pages from the root."""
    return ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def read_blocks(page: str) -> list[Block]:
    lines = iter(enumerate((ROOT / page).read_text().splitlines(), 1))
    blocks, above = [], ""
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
            blocks.append(Block(page, number, fence[2], argument + "\n".join(content), marker, reason))
        elif line.lstrip().startswith(("```", "~~~")):
            raise AssertionError(f"{page}, line {number}: a fence must begin its line, or its block is not run")
        above = line.strip() if line.strip() or fence else above
    return blocks


def matches(expected: str, printed: str) -> bool:
    """Return whether a line is the one that a page shows, except for its numbers."""

    def mask(line: str) -> str:
        return re.sub(r"\d[\d.,]*\d|\d", "#", line.strip())

    pattern = ".*".join(re.escape(part) for part in mask(expected).split("..."))
    return re.fullmatch(pattern, mask(printed)) is not None


def script(page: str) -> str:
    """Return what a reader types as a shell script: the commands, and then all Python in one process."""
    blocks = [block for block in read_blocks(page) if block.marker is None]
    commands = [block.text for block in blocks if block.language == "console"]
    python = "\n".join(block.text for block in blocks if block.language == "python")
    return "\n".join(["set -eux", *commands, f"python -c {shlex.quote(python)}"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write("".join(map(script, sys.argv[1:])))
