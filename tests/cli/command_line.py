"""Commands on small data, in an empty directory, on a machine without CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cifarnet import cli, make_synthetic

#: Exit code, stdout and stderr of a command.
Run = Callable[..., tuple[int, str, str]]

SYNTHETIC = ("--data", "synthetic", "--recipe", "basic")


def small_synthetic(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Make ``--data synthetic`` 200 training and 60 test images."""
    patch.chdir(directory)
    patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    patch.delenv("CIFARNET_DATA", raising=False)
    small = make_synthetic(num_train=200, num_test=60, seed=0)
    patch.setattr("cifarnet.cli.data_source.make_synthetic", lambda size: small)


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
