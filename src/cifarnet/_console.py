"""Lines on stderr, which are lost without an error if stderr is closed or missing."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["write_line"]


def write_line(line: str) -> None:
    """Write a line to stderr if it can be written."""
    # ValueError: the file is closed. AttributeError: sys.stderr is None or has no flush.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
