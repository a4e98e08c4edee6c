"""Commands on small data, in an empty directory, on a machine without CIFAR-10."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cifarnet import cli, make_synthetic


def prepare(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Make ``--data synthetic`` 200 training and 60 test images."""
    patch.chdir(directory)
    patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    patch.delenv("CIFARNET_DATA", raising=False)
    small = make_synthetic(num_train=200, num_test=60, seed=0)
    patch.setattr("cifarnet.cli.data_source.make_synthetic", lambda size: small)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command; return its exit code, stdout and stderr."""
    prepare(monkeypatch, tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bf16 with validation images."""
    directory = tmp_path_factory.mktemp("trained")
    options = ("--epochs", "3", "--val-fraction", "0.25", "--precision", "bf16", "--out", "a")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, directory)
        assert cli.main(["train", "--data", "synthetic", *options]) == 0
    return directory / "a"


@pytest.fixture
def a(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run as ``a`` in the working directory of `run`."""
    return shutil.copytree(trained, tmp_path / "a")
