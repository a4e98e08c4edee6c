"""Code blocks of the README and of the site run on small images."""

from __future__ import annotations

import contextlib
import glob
import io
import runpy
import shlex
import shutil
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from markdown_blocks import DIRECTIVES, ROOT, Block, matches, pages, read_blocks
from PIL import Image
from torchvision.transforms import v2

import cifarnet
from cifarnet import DatasetSplits, ImageDataset, cli, data, make_synthetic
from cifarnet.cli import data_source, demo

HINT = "say above its fence why it is not run, see tests/docs/markdown_blocks.py"


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with what pages use: a picture, a folder of photos, a run of the reference recipe."""
    folder = tmp_path_factory.mktemp("furnished")
    Image.new("RGB", (48, 40), (200, 120, 40)).save(folder / "cat.png")
    for part, count in (("train", 8), ("test", 4)):
        drawn = make_synthetic(120, 1, seed=count, size=40).train
        for name in ("circle", "ring", "dots"):
            (folder / "photos" / part / name).mkdir(parents=True)
            for i in (drawn.labels == drawn.classes.index(name)).nonzero()[:count, 0].tolist():
                v2.ToPILImage()(drawn.images[i]).save(folder / "photos" / part / name / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        make_everything_small(patch, folder)
        run_line("cifarnet train --recipe reference --epochs 1")
    return folder


def make_everything_small(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Reduce CIFAR-10 and `make_synthetic` to 120 images, and figures to thumbnails."""

    def draw_few(num_train: int = 120, num_test: int = 40, *, seed: int = 0, size: int = 32) -> DatasetSplits:
        return make_synthetic(min(num_train, 120), min(num_test, 40), seed=seed, size=size)

    def load_few(*_: object, **__: object) -> DatasetSplits:
        few, classes = draw_few(), data.CIFAR10_CLASSES
        return DatasetSplits(
            *(ImageDataset(x.images, x.labels, classes, name="CIFAR-10") for x in (few.train, few.test))
        )

    for module in (cifarnet, data_source, data):
        patch.setattr(module, "load_cifar10", load_few)
    for module in (cifarnet, data_source, demo, data):
        patch.setattr(module, "make_synthetic", draw_few)
    patch.setattr(demo, "_EPOCHS", 1)
    patch.setitem(mpl.rcParams, "figure.dpi", 30)
    patch.setenv("CIFARNET_DATA", "/nowhere")
    patch.chdir(folder)
    (folder / "DIR").mkdir(exist_ok=True)


def is_run(block: Block) -> bool:
    return block.language in ("python", "console") and block.marker in (None, "parsed")


def run(block: Block, names: dict[str, object]) -> list[str]:
    """Run a block and return the lines that it prints, on stdout and stderr together."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
        else:
            for line in block.text.replace("\\\n", " ").splitlines():
                run_line(line, block.place, only_parse=block.marker == "parsed")
    return printed.getvalue().splitlines()


def run_line(line: str, place: str = "", *, only_parse: bool = False) -> None:
    """Do what a shell does. Of examples, which have tests of their own, check the options only."""
    program, *words = shlex.split(line, comments=True) or [""]
    arguments = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    if program == "python" and arguments[0].startswith("examples/"):
        script = (ROOT / arguments[0]).read_text()
        if arguments[0].startswith("examples/benchmarks/"):  # whose shared options are in one file
            script += (ROOT / "examples/benchmarks/measurement.py").read_text()
        assert all(f'"{word}"' in script for word in arguments[1:] if word.startswith("--")), f"{place}: {line}"
        return
    assert program == "cifarnet", f"{place}: {line!r} is no command of cifarnet; {HINT}"
    if only_parse:
        cli._parse(arguments)
    else:
        assert cli.main(arguments) == 0, f"{place}: {line}"


@pytest.mark.parametrize("page", [page for page in pages() if any(map(is_run, read_blocks(page)))])
def test_every_block_of_a_page_runs(
    page: str, furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    make_everything_small(monkeypatch, tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    printed: list[str] = []
    with torch.random.fork_rng():
        for block in read_blocks(page):
            if block.language == "text":
                for line in filter(str.strip, block.text.splitlines()):
                    assert any(matches(line, one) for one in printed), f"{block.place}: not printed: {line}"
            else:
                printed = run(block, names) if is_run(block) else []


@pytest.mark.parametrize("page", pages())
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    for block in read_blocks(page):
        assert block.language in ("python", "console", "text", *DIRECTIVES), f"{block.place}: {block.language}"
        if block.language == "{literalinclude}":
            script = (ROOT / page).parent / block.text.splitlines()[0]
            assert script.resolve().parent == ROOT / "examples", f"{block.place}: only examples are run"
            names = ("examples/test_examples", "examples/test_sweep", "docs/test_lessons")
            tests = [(ROOT / f"tests/{name}.py").read_text() for name in names]
            assert f'"{script.name}"' in "".join(tests), f"{block.place}: not run"
        if block.marker == "run by":
            assert page.rpartition("/")[2] in (ROOT / block.reason).read_text(), f"{block.place}: not in {block.reason}"
        elif block.marker is not None:
            assert len(block.reason.split()) >= 3, f"{block.place}: why?"


def test_every_example_is_in_the_gallery() -> None:
    blocks = [block for page in pages() if page.startswith("docs/gallery/") for block in read_blocks(page)]
    shown = [Path(block.text.splitlines()[0]).name for block in blocks if block.language == "{literalinclude}"]
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_committed_figures_are_current() -> None:
    drawing = runpy.run_path(str(ROOT / "docs" / "make_figures.py"))
    committed = sorted(path.name for path in drawing["FIGURES"].iterdir())
    assert committed == sorted(drawing["sources"]())
    stale = [name for name in committed if not drawing["is_current"](name)]
    assert not stale, "run: python docs/make_figures.py"
    assert all((drawing["FIGURES"] / name).stat().st_size < 300_000 for name in committed)


def test_shown_output_may_differ_in_numbers_only() -> None:
    assert matches("accuracy 77.63 %, 10,000 images", "accuracy 5.1 %, 40 images")
    assert matches("wrote ... and b", "wrote a.png and b")
    assert not matches("accuracy 77.63 %", "precision 77.63 %")
    assert not matches("accuracy 77.63 %", "accuracy 77.63 %, 40 images")
