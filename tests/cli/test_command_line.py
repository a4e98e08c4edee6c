"""Arguments, exit codes, errors and output of the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifarnet import cli, recipes
from cifarnet.cli.arguments import RECIPE_NAMES, TTA_NAMES, build_parser
from cifarnet.errors import CifarnetError
from cifarnet.transforms import tta

Run = Callable[..., tuple[int, str, str]]
SYNTHETIC = ("--data", "synthetic", "--recipe", "basic")
COMMANDS = ("demo", "train", "evaluate", "predict", "export", "report", "recipes", "info")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --recipe refrence", 'unknown recipe "refrence"; did you mean "reference"?'),
        ("train --batch-size 0", "batch_size must be at least 1, got 0"),
        ("train --epochs many", "argument --epochs: invalid int value: 'many'"),
        ("train --device gpu", 'device "gpu" cannot be used'),
        ("train --val-fraction 1.5 --data no/such", "val_fraction must be in (0, 1), got 1.5"),
        ("train --seed -1 --data no/such", "seed must be at least 0, got -1"),
        ("train --data syntetic", 'there is no such folder. Did you mean "synthetic"?'),
        ("trian", 'unknown command "trian"; did you mean "train"?'),
        ("train --epohcs 3", 'unknown option --epohcs; did you mean "--epochs"?'),
        ("--json info", "--json must come after a command: cifarnet COMMAND --json ..."),
        ("info now", "now: one argument too many; cifarnet info --help shows the usage"),
        ("predict no/such cat.png --top 0", "--top must be at least 1, got 0"),
        ("predict cat.png runs/a", "cat.png is a picture; the run comes first"),
        ("evaluate no/such --tta filp", '--tta "filp" is unknown; did you mean "flip"?'),
        ("export no/such --format onix", '--format "onix" is unknown; did you mean "onnx"?'),
        ("demo --device gpu", 'device "gpu" cannot be used'),
        ("", "first steps:"),
    ],
)
def test_wrong_use_exits_with_2_and_writes_nothing(run: Run, tmp_path: Path, arguments: str, message: str) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_failure_exits_with_1_and_one_line(run: Run) -> None:
    code, out, err = run("evaluate", "nowhere", "--data", "synthetic")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"cifarnet: error: .*nowhere.*\n", err)
    with pytest.raises(CifarnetError):
        run("evaluate", "nowhere", "--data", "synthetic", "--debug")


def test_train_refuses_a_directory_before_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("train", *SYNTHETIC, "--out", "file/run")
    assert (code, "epoch" in err) == (1, False)
    assert "cannot write to" in err
    (tmp_path / "photos" / "Train").mkdir(parents=True)
    code, _, err = run("train", "--data", "photos")
    assert code == 1
    assert "photos: the folder holds neither CIFAR-10 nor train/CLASS/" in err
    assert 'phtos: there is no such folder. Did you mean "photos"?' in run("train", "--data", "phtos")[2]


def test_missing_cifar10_is_explained_with_remedies(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cifarnet.datasets.cifar10.download_addresses", lambda: ("http://127.0.0.1:9/x.tar.gz",))
    (tmp_path / "data").mkdir()
    code, _, err = run("train", "--data", str(tmp_path / "data"))
    assert code == 1
    for remedy in ("--data", "CIFARNET_DATA", "cifar-10-binary.tar.gz", "synthetic"):
        assert remedy in err
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_exits_with_130_and_a_hint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt from CifarnetError("of the step")

    monkeypatch.setattr("cifarnet.cli.commands.build_trainer", interrupt)
    monkeypatch.setattr("cifarnet.cli.demo.make_synthetic", interrupt)
    code, _, err = run("train", *SYNTHETIC)
    assert code == 130
    assert err.splitlines() == [
        "cifarnet: error: of the step",
        "cifarnet: interrupted; --resume continues a run that has started",
    ]
    assert run("demo")[2].endswith("cifarnet: interrupted; the same command resumes the demo\n")


def test_warning_is_one_line_on_stderr(run: Run) -> None:
    options = ("train", *SYNTHETIC, "--resume", "--out", "r")
    assert run(*options, "--epochs", "1", "--precision", "float32")[0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run(*options, "--epochs", "2", "--precision", "bf16")
    assert code == 0
    assert err.startswith("warning: precision float32 in the run, bf16 now")


def test_json_has_words_for_non_finite_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarnet.cli.commands.describe_device", lambda _: float("inf"))
    assert json.loads(run("info", "--json")[1], parse_constant=pytest.fail)["hardware"] == "inf"


@pytest.mark.usefixtures("run", "a")
def test_output_survives_closed_pipes_and_ascii_terminals() -> None:
    name = "\N{LATIN SMALL LETTER E WITH ACUTE}.png"
    Image.new("RGB", (40, 30)).save(name)
    command = [sys.executable, "-m", "cifarnet", "predict", "a", name]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout[:9]) == (0, "\\xe9.png:")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_and_wrong_use_do_not_import_torch() -> None:
    words = [["--help"], ["--version"], ["trian"], ["train", "--epohcs", "3"], ["train", "--epochs", "many"]]
    words += [[command, "--help"] for command in COMMANDS]
    code = (
        "import sys\n"
        "from cifarnet.cli import main\n"
        f"for words in {words}:\n"
        "    try: code = main(words)\n"
        "    except SystemExit as exit: code = exit.code\n"
        "    assert code == (0 if words[-1][:2] == '--' else 2), (words, code)\n"
        "    assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("run", "a")
def test_only_drawing_commands_import_matplotlib() -> None:
    Image.new("RGB", (40, 30)).save("a.png")
    code = (
        "import sys; from cifarnet.cli import main; codes = [main(['info']), main(['predict', 'a', 'a.png']), "
        "main(['evaluate', 'a', '--data', 'synthetic'])]; print(codes, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] False"


def test_every_command_has_help_with_valid_examples(run: Run) -> None:
    parser, commands = build_parser()
    assert tuple(commands) == COMMANDS
    pages = [parser.format_help(), *(command.format_help() for command in commands.values())]
    assert all(f"examples:\n  cifarnet {name}" in page for name, page in zip(COMMANDS, pages[1:], strict=True))
    examples = [line for page in pages for line in re.findall(r"^  cifarnet (\w.*?)(?:  +.*)?$", page, re.MULTILINE)]
    assert len(examples) > 15
    for example in examples:
        assert callable(cli._load(parser.parse_args(example.split()).command))
    assert run("--help")[1] == pages[0]
    assert (tuple(recipes.RECIPES), tta.TTA_NAMES) == (RECIPE_NAMES, TTA_NAMES)
