"""Commands on small data: their files and numbers, exit codes, errors and help."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cifarnet import CifarCNN, Classifier, Evaluation, History, Preprocess, cli, make_synthetic, recipes
from cifarnet.checkpoint import read_checkpoint
from cifarnet.cli.arguments import RECIPE_NAMES, TTA_NAMES, build_parser
from cifarnet.data import DatasetSplits, load_image_folder
from cifarnet.errors import CifarnetError
from cifarnet.recipes.named import measured_results
from cifarnet.report import load_report, read_reports, summarize_seeds
from cifarnet.transforms import tta

#: A command's exit code, stdout and stderr.
Run = Callable[..., tuple[int, str, str]]
SYNTHETIC = ("--data", "synthetic", "--recipe", "basic")
PHOTOS = ("--data", "photos", "--recipe", "basic")
COMMANDS = ("demo", "train", "evaluate", "predict", "export", "report", "recipes", "info")
DATA = make_synthetic(num_train=200, num_test=60, seed=0)


def prepare(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Make ``--data synthetic`` 200 training and 60 test images."""
    patch.chdir(directory)
    patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    patch.delenv("CIFARNET_DATA", raising=False)
    patch.setattr("cifarnet.cli.data_source.make_synthetic", lambda size: DATA)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    prepare(monkeypatch, tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture(scope="module")
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


def save_photos(folder: Path, data: DatasetSplits, num_classes: int) -> None:
    for split, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(images):
            path = folder / split / f"class-{label % num_classes}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def test_train_writes_a_run_and_its_report(run: Run, tmp_path: Path) -> None:
    code, out, err = run("train", *SYNTHETIC, "--epochs", "2", "--val-fraction", "0.25", "--out", "my runs/a", "--json")
    assert code == 0, err
    report, folder = json.loads(out), tmp_path / "my runs" / "a"
    assert report == load_report(folder / "report.json")
    assert {path.name for path in folder.iterdir()} == {
        *("architecture.png", "best.safetensors", "history.csv", "last.previous.safetensors", "last.safetensors"),
        *("predictions.png", "report.json", "training_curves.png"),
    }
    assert report["data"]["val"]["num_images"] + report["data"]["train"]["num_images"] == 200
    assert History.load_csv(folder / "history.csv") == History.from_list(report["history"])
    assert report["selected_by"]["value"] == max(epoch["val_accuracy"] for epoch in report["history"])
    assert err.count("epoch ") == 2  # plain lines without a terminal
    code, out, err = run("train", *SYNTHETIC, "--epochs", "2", "--val-fraction", "0.25", "--out", "my runs/a")
    assert code == 1
    assert "holds a run. Continue it with resume=True (--resume)" in err


def test_reference_run_selects_nothing_by_test_images(run: Run) -> None:
    options = ("train", "--data", "synthetic", "--epochs", "1", "--resume")
    code, out, _ = run(*options, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["selected_by"] == {"monitor": "final", "epoch": 1, "value": None}
    assert report["test_watched"].endswith("nothing was selected by it")
    assert report["metrics"]["test_accuracy"] == report["history"][-1]["test_accuracy"]
    assert (report["data"]["val"], report["metrics"]["calibrated"]) == (None, None)
    assert Classifier.load("runs/reference").temperature == 1
    code, out, err = run(*options)
    assert (code, "Run already finished (1/1)" in err) == (0, True)
    assert "next: cifarnet predict runs/reference IMAGE" in out


def test_run_is_calibrated_on_validation_images(run: Run, a: Path) -> None:
    metrics, classifier = load_report(a / "report.json")["metrics"], Classifier.load(a)
    chosen = classifier.temperature
    assert metrics["calibrated"]["temperature"] == chosen != 1
    evaluation = classifier.evaluate(DATA.test)
    assert metrics["calibrated"]["test_log_loss"] == evaluation.log_loss != metrics["test_log_loss"]
    document = json.loads(run("evaluate", "a", "--json")[1])
    assert Evaluation.from_dict({key: document[key] for key in evaluation.to_dict()}) == evaluation
    classifier.temperature = 1.0
    assert metrics["test_log_loss"] == classifier.evaluate(DATA.test).log_loss
    assert classifier.calibrate(DATA.train.split(0.25, seed=0)[1]) == chosen


def test_every_seed_has_the_same_validation_images(run: Run) -> None:
    for seed in ("0", "1"):
        options = ("--epochs", "1", "--val-fraction", "0.1", "--seed", seed, "--out", f"runs/seed-{seed}")
        assert run("train", *SYNTHETIC, *options)[0] == 0
    assert summarize_seeds(read_reports("runs"))["n"] == 2


@pytest.mark.filterwarnings("ignore:Removed 1 unfinished checkpoint")  # the kill may hit a save
def test_resume_after_kill_is_bit_identical(run: Run, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", DATA, 10)
    options = ("train", *PHOTOS, "--epochs", "3", "--precision", "bf16", "--save-every", "0")
    assert run(*options, "--out", "a")[0] == 0
    command = [sys.executable, "-m", "cifarnet", *options, "--out", "b"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if line.startswith("epoch 1:"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    code, _, err = run(*options, "--out", "b", "--resume")
    assert code == 0, err
    for name in ("best", "last"):
        one, other = (read_checkpoint(tmp_path / d / f"{name}.safetensors").tensors for d in ("a", "b"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_image_folder_trains_a_network_for_its_classes(run: Run, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", make_synthetic(30, 10, seed=1), 2)
    assert run("train", *PHOTOS, "--epochs", "1", "--out", "a")[0] == 0
    code, out, err = run("evaluate", "a", "--json")  # the run knows its data
    assert code == 0, err
    assert json.loads(out)["accuracy"] == load_report("a/report.json")["metrics"]["test_accuracy"]
    photos = load_image_folder(tmp_path / "photos", size=40).test  # in the size of the network
    assert Classifier.load("a").classes == photos.classes == ("class-0", "class-1")
    large = Classifier(CifarCNN(2, image_size=40, hidden=16), Preprocess(40), photos.classes, precision="float32")
    large.save("large")
    document = json.loads(run("evaluate", "large", "--data", "photos", "--json")[1])
    assert document["loss"] == large.evaluate(photos).loss
    shutil.copytree("photos/test", "photos/val")
    code, out, err = run("train", *PHOTOS, "--epochs", "1", "--out", "b", "--json")
    assert json.loads(out)["selected_by"]["monitor"] == "val_accuracy"
    code, _, err = run("train", "--data", "photos", "--val-fraction", "0.1", "--out", "c")
    assert (code, "photos has a val/ folder, which chooses the best epoch" in err) == (2, True)
    Path("photos").rename("elsewhere")
    code, _, err = run("evaluate", "a")
    assert (code, "a was trained on class-0, class-1, ... . Name images of these" in err) == (1, True)


def test_metrics_with_test_time_augmentation_say_so(run: Run, a: Path) -> None:
    Image.new("RGB", (40, 30), (200, 30, 30)).save("a.png")
    classifier, options = Classifier.load(a), ("--tta", "flip")
    evaluation, prediction = classifier.evaluate(DATA.test, tta="flip"), classifier.predict("a.png", tta="flip")
    document = json.loads(run("evaluate", "a", *options, "--json")[1])
    assert (document["tta"], document["loss"]) == ("flip", evaluation.loss)
    text = run("evaluate", "a/best.safetensors", *options)[1]
    assert text == f"{DATA.test.name}: test {evaluation.table()}\n"
    document = json.loads(run("predict", "a", "a.png", *options, "--json")[1])
    assert (document["tta"], document["predictions"][0]["probability"]) == ("flip", prediction.probability)
    text = run("predict", "a", "a.png", *options)[1]
    assert text == f"a.png: {prediction}, with test-time augmentation (flip)\n"


def test_predict_accepts_pictures_of_any_size(run: Run, a: Path) -> None:
    images = make_synthetic(1, 3, seed=9, size=70).test.images
    paths = ("0.png", "1.jpg", "2.webp")
    for i, path in enumerate(paths):
        Image.fromarray(images[i, :, :, i:].permute(1, 2, 0).numpy()).save(path)
    expected = [Classifier.load(a).predict(path, top_k=2) for path in paths]
    document = json.loads(run("predict", "a", *paths, "--top", "2", "--json")[1])
    assert [printed["label"] for printed in document["predictions"]] == [prediction.label for prediction in expected]
    out = run("predict", "a/best.safetensors", *paths, "--top", "2")[1]
    assert out.splitlines() == [f"{path}: {prediction}" for path, prediction in zip(paths, expected, strict=True)]
    code, partial, err = run("predict", "a", "0.png", "cat.png", "1.jpg", "--top", "2")
    assert (code, err[:30]) == (1, "cifarnet: error: cat.png: no s")
    assert partial.splitlines() == out.splitlines()[:2]
    document = json.loads(run("predict", "a", "0.png", "cat.png", "--json")[1])
    assert (len(document["predictions"][0]["top"]), "cat.png: no such file" in document["errors"][0]) == (10, True)


def test_export_compares_the_file_with_the_library(run: Run, monkeypatch: pytest.MonkeyPatch, a: Path) -> None:
    code, out, err = run("export", "a")
    assert (code, err) == (0, "")
    size = (a / "model.onnx").stat().st_size
    first, second, third = out.splitlines()
    assert first == f"a/model.onnx: {size / 1e6:.1f} MB, uint8 images (N, 3, 32, 32) to probabilities, in float32"
    assert re.fullmatch(r"largest difference from the library: \d\.\de-0[5-9], over 72 images", second)
    assert re.fullmatch(r"from the library in bf16, as trained: \d\.\de-0[1-4]", third)
    document = json.loads(run("export", "a/best.safetensors", "--json")[1])
    assert (document["path"], document["num_bytes"], document["run_precision"]) == ("a/model.onnx", size, "bf16")
    assert 0 < document["difference"] <= document["tolerance"] == 1e-4
    assert "a .pt2 can execute code" in run("export", "a", "--format", "torch", "--out", "b.pt2")[1]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = run("export", "a", "--out", "c.onnx")
    assert (code, "onnxscript. Install it with: pip install" in err) == (1, True)


def test_demo_goes_from_training_to_prediction(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def small(num_train: int = 200, num_test: int = 60, *, seed: int = 0, size: int = 32) -> DatasetSplits:
        return make_synthetic(num_train, num_test, seed=seed, size=size)

    monkeypatch.setattr("cifarnet.cli.demo.make_synthetic", small)
    monkeypatch.setattr("cifarnet.cli.demo._EPOCHS", 2)
    code, out, err = run("demo", "--out", "here")
    assert code == 0, err
    assert re.findall(r"^(\d)\. ", out, re.MULTILINE) == list("123456")
    typed = re.search(r"^  cifarnet (predict .*)$", out, re.MULTILINE)
    assert typed is not None
    assert run(*typed[1].split())[0] == 0
    code, out, err = run("demo", "--out", "here", "--json")
    assert (code, "Run already finished (2/2)" in err, "6. Figures" in err) == (0, True, True)
    document, classifier = json.loads(out), Classifier.load("here")
    assert document["num_correct"] == classifier.evaluate(small().test).num_correct
    assert all((tmp_path / path).exists() for path in document["figures"])


def test_recipes_are_listed_with_their_results(run: Run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    for name, recipe in recipes.RECIPES.items():
        assert re.search(rf"^{name} +{re.escape(recipe.summary)}$", out, flags=re.MULTILINE)
    measured = measured_results("reference")[0]
    assert f"{100 * measured['test_accuracy']['mean']:.2f} ± " in out
    assert json.loads(run("recipes", "--json")[1])["recipes"]["reference"]["results"][0] == measured


def test_info_shows_versions_and_no_cifar10(run: Run) -> None:
    document = json.loads(run("info", "--json")[1])
    assert (document["torch"], document["cifar10"]) == (str(torch.__version__), None)
    assert f"torch          {torch.__version__}" in run("info")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --recipe refrence", 'recipe "refrence" is unknown; did you mean "reference"?'),
        ("train --epochs many", "argument --epochs: invalid int value: 'many'"),
        ("train --device gpu", 'device "gpu" cannot be used'),
        ("train --val-fraction 1.5 --data no/such", "val_fraction must be in (0, 1), got 1.5"),
        ("train --data syntetic", 'there is no such folder. Did you mean "synthetic"?'),
        ("trian", 'unknown command "trian"; did you mean "train"?'),
        ("train --epohcs 3", 'unknown option --epohcs; did you mean "--epochs"?'),
        ("--json info", "--json must come after a command: cifarnet COMMAND --json ..."),
        ("info now", "now: one argument too many; cifarnet info --help shows the usage"),
        ("predict no/such cat.png --top 0", "--top must be at least 1, got 0"),
        ("predict cat.png runs/a", "cat.png is a picture; the run comes first"),
        ("evaluate no/such --tta filp", '--tta "filp" is unknown; did you mean "flip"?'),
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


def test_train_refuses_a_directory_before_training(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cifarnet.data.cifar10.ADDRESSES", ("http://127.0.0.1:9/x.tar.gz",))
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos" / "Train").mkdir(parents=True)
    for options, expected, message in (
        ((*SYNTHETIC, "--out", "file/run"), 1, "cannot write"),
        (("--data", "photos"), 1, "photos: the folder holds neither CIFAR-10 nor train/CLASS/"),
        (("--data", "phtos"), 2, 'phtos: there is no such folder. Did you mean "photos"?'),
        (("--data", "empty"), 1, "CIFAR-10 could not be downloaded"),
    ):
        code, _, err = run("train", *options)
        assert (code, message in err, "epoch" in err) == (expected, True, False), err


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
