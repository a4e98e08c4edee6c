from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    DatasetSplits,
    Evaluation,
    History,
    Preprocess,
    cli,
    load_image_folder,
    make_synthetic,
    recipes,
)
from cifarnet._choices import EXPORT_FORMATS, RECIPE_NAMES
from cifarnet.checkpoint import read_checkpoint
from cifarnet.cli import commands, export
from cifarnet.cli.arguments import BENCHMARKS, build_parser
from cifarnet.cli.imports import load_command
from cifarnet.errors import CifarnetError
from cifarnet.report import load_report, read_reports, summarize_seeds

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty directory, on a machine without CIFAR-10; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CIFARNET_DATA", raising=False)
    small = make_synthetic(num_train=200, num_test=60, seed=0)
    monkeypatch.setattr("cifarnet.cli.data.make_synthetic", lambda size: small)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_train_writes_a_run_that_evaluate_finds_again(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        "train", "--data", "synthetic", "--epochs", "2", "--val-fraction", "0.25", "--out", "runs/a", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report == load_report(tmp_path / "runs/a/report.json")
    assert sorted(path.name for path in (tmp_path / "runs/a").iterdir()) == [
        "architecture.png",
        "best.safetensors",
        "history.csv",
        "last.previous.safetensors",
        "last.safetensors",
        "predictions.png",
        "report.json",
        "training_curves.png",
    ]
    assert report["recipe"]["max_epochs"] == 2
    assert report["data"]["val"]["num_images"] + report["data"]["train"]["num_images"] == 200
    assert report["command"].startswith("cifarnet train --data synthetic --epochs 2")
    history = History.load_csv(tmp_path / "runs/a/history.csv")
    assert history == History.from_list(report["history"])
    for key in ("train_s", "eval_s"):
        assert report["durations"][key] == sum(epoch[key] for epoch in report["history"]) > 0
    assert report["peak_memory_mb"] > 100
    best = history.best()
    assert best is not None
    assert report["selected_by"] == {"monitor": "val_accuracy", "epoch": best.epoch, "value": best.val_accuracy}
    assert err.count("epoch ") == 2  # plain lines without a terminal

    code, out, err = run("evaluate", "runs/a", "--json")  # the run knows its data
    assert code == 0, err
    document = json.loads(out)
    assert document["accuracy"] == report["metrics"]["test_accuracy"]
    assert document["loss"] == report["metrics"]["test_loss"]
    assert document["selected_by"] == report["selected_by"]
    code, out, _ = run("evaluate", "runs/a/best.safetensors", "--data", "synthetic")
    assert f"accuracy {document['accuracy']:.2%}" in out


def test_a_run_is_calibrated_on_what_it_held_out_and_on_nothing_else(run: Run) -> None:
    options = ("train", "--data", "synthetic", "--epochs", "3", "--out")
    assert run(*options, "plain", "--json")[0] == 0
    scores = load_report("plain/report.json")["metrics"]
    assert scores["calibrated"] is None
    assert Classifier.load("plain").temperature == 1
    code, out, err = run(*options, "held", "--val-fraction", "0.25")
    assert code == 0, err
    classifier, data = Classifier.load("held"), make_synthetic(num_train=200, num_test=60, seed=0)
    scores, chosen = load_report("held/report.json")["metrics"], classifier.temperature
    assert scores["calibrated"]["temperature"] == chosen != 1
    found = classifier.evaluate(data.test)
    assert f"held-out images: temperature {chosen:.3f}; test calibration error" in out
    # What every report has is without temperature, so that runs compare; what the run's users get is beside it.
    assert scores["calibrated"]["test_log_loss"] == found.log_loss != scores["test_log_loss"]
    assert scores["calibrated"]["test_calibration_error"] == found.expected_calibration_error
    assert (scores["test_top_k"], scores["test_top_k_accuracy"]) == (5, found.top_k_accuracy)
    classifier.temperature = 1.0
    plain = classifier.evaluate(data.test)
    assert (scores["test_log_loss"], scores["test_brier"]) == (plain.log_loss, plain.brier)
    assert scores["test_calibration_error"] == plain.expected_calibration_error
    assert classifier.calibrate(data.train.split(0.25, seed=0)[1]) == chosen
    document = json.loads(run("evaluate", "held", "--json")[1])
    assert document["temperature"] == chosen
    told = {key: document[key] for key in found.to_dict()}
    assert Evaluation.from_dict(told) == found
    assert run(*options, "held", "--val-fraction", "0.25", "--resume")[0] == 0
    assert Classifier.load("held").temperature == chosen


def test_every_seed_holds_out_the_same_images(run: Run) -> None:
    options = ("train", "--data", "synthetic", "--recipe", "basic", "--epochs", "1", "--val-fraction", "0.1")
    for seed in ("0", "1"):
        assert run(*options, "--seed", seed, "--out", f"runs/seed-{seed}")[0] == 0
    assert summarize_seeds(read_reports("runs"))["n"] == 2


def test_a_run_without_a_best_temperature_is_a_run_all_the_same(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Equal(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 10) + 0 * images.mean()

    val = make_synthetic(num_train=200, num_test=60, seed=0).test
    guessing = Classifier(Equal(), Preprocess(32), val.classes, device="cpu", precision="float32")
    assert not commands._calibrate(guessing, val, tmp_path / "run")
    assert "probabilities are not calibrated: No temperature fits" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_after_a_kill_gives_the_bytes_of_an_unbroken_run(run: Run, tmp_path: Path) -> None:
    options = ("train", "--data", "synthetic", "--epochs", "3", "--precision", "bf16", "--save-every", "0")
    assert run(*options, "--out", "a")[0] == 0
    script = (
        "import os, signal, sys\n"
        "from cifarnet import Checkpointer, cli, make_synthetic\n"
        "from cifarnet.cli import data\n"
        "from cifarnet.training.checkpointing import CheckpointSaver\n"
        "data.make_synthetic = lambda size: make_synthetic(num_train=200, num_test=60, seed=0)\n"
        "after_step = CheckpointSaver.after_step\n"
        "def after_step_and_wait(self):\n"  # or a slow disk may see no state of these two epochs
        "    after_step(self)\n"
        "    self._writer.wait()\n"
        "CheckpointSaver.after_step = after_step_and_wait\n"
        "save = Checkpointer.save_state\n"
        "def save_and_die(self, state):\n"
        "    save(self, state)\n"
        "    if len(state['history']) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Checkpointer.save_state = save_and_die\n"
        "cli.main(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *options, "--out", "b"], capture_output=True, check=False)
    assert killed.returncode == -9
    code, _, err = run(*options, "--out", "b", "--resume")
    assert code == 0, err
    assert "(3/3)" in err
    assert "(2/3)" not in err
    for name in ("best", "last"):
        one, other = (read_checkpoint(tmp_path / d / f"{name}.safetensors").tensors for d in ("a", "b"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_reference_watches_the_test_images_and_selects_nothing_by_them(run: Run) -> None:
    code, out, _ = run("train", "--data", "synthetic", "--epochs", "2", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["selected_by"] == {"monitor": "final", "epoch": 2, "value": None}
    assert report["backend"] == ("cuda-graph" if torch.cuda.is_available() else "eager")
    assert report["changed_on_resume"] == []
    assert report["test_watched"].endswith("nothing was selected by it")
    assert report["metrics"]["test_accuracy"] == report["history"][-1]["test_accuracy"]
    assert report["data"]["val"] is None
    assert Path("runs/reference/report.json").exists()


def test_a_finished_run_can_be_asked_for_again(run: Run) -> None:
    options = ("train", "--data", "synthetic", "--epochs", "1", "--resume")
    assert run(*options)[0] == 0
    code, out, err = run(*options)
    assert code == 0
    assert "Run already finished (1/1)" in err
    assert "test accuracy" in out


def test_recipes_are_listed_with_what_came_of_them(run: Run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    for name, recipe in recipes.RECIPES.items():
        assert re.search(rf"^{name} +{re.escape(recipe.summary)}$", out, flags=re.MULTILINE)
    measured = recipes.measured_results("reference")[0]
    assert f"{100 * measured['test_accuracy']['mean']:.2f} ± " in out
    assert f"n = {measured['n']}" in out
    code, out, _ = run("recipes", "--json")
    listed = json.loads(out)["recipes"]
    assert listed["reference"]["results"][0] == measured
    assert listed["fast94"]["settings"]["ns_steps"] == 3


def test_info_tells_where_things_are(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("info", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["torch"] == str(torch.__version__)
    assert document["cifar10"] is None
    assert "reference" in document["recipes"]
    code, out, _ = run("info")
    assert code == 0
    assert "reference" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--recipe", "refrence"), 'unknown recipe "refrence"; did you mean "reference"?'),
        (("train", "--batch-size", "0"), "batch_size must be at least 1, got 0"),
        (("train", "--epochs", "-1"), "max_epochs must be at least 1, got -1"),
        (("train", "--precision", "fp8"), 'precision "fp8" is unknown'),
        (("train", "--device", "gpu"), 'device "gpu" cannot be used'),
        (("train", "--data", "synthetic", "--val-fraction", "1.5"), "val_fraction must be in (0, 1), got 1.5"),
        (("train", "--epochs", "many"), "argument --epochs: invalid int value: 'many'"),
        (("train", "--val-fraction", "1.5", "--data", "no/such"), "val_fraction must be in (0, 1), got 1.5"),
        (("train", "--seed", "-1", "--data", "no/such"), "seed must be at least 0, got -1"),
        (("trian",), 'unknown command "trian"; did you mean "train"?'),
        (("train", "--epohcs", "3"), 'unknown option --epohcs; did you mean "--epochs"?'),
        (("train", "--wieght-decay=1"), "unknown option --wieght-decay; choose one of"),
        (("--json", "info"), "--json goes behind a command: cifarnet COMMAND --json ..."),
        (("predict", "no/such", "cat.png", "--top", "0"), "--top must be at least 1, got 0"),
        (("predict", "no/such", "cat.png", "--device", "meta"), 'device "meta" stores no values'),
        (("evaluate", "no/such", "--tta", "filp"), '--tta "filp" is unknown; did you mean "flip"?'),
        (("predict", "no/such", "cat.png", "--tta", "crop"), '--tta "crop" is unknown; choose one of "flip", "flip+'),
        (("info", "now"), "now: one argument too many; cifarnet info --help shows the usage"),
        (("predict", "runs/a"), "the following arguments are required: IMAGE"),
        (("predict", "runs/a", "cat.png", "--top", "no"), "argument --top: invalid int value: 'no'"),
        (("export", "no/such", "--format", "onix"), '--format "onix" is unknown; did you mean "onnx"?'),
        (("demo", "--device", "gpu"), 'device "gpu" cannot be used'),
        ((), "first steps:"),
    ],
)
def test_wrong_use_exits_2_with_one_line_and_writes_nothing(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_exits_1_with_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("evaluate", "nowhere", "--data", "synthetic")
    assert (code, out) == (1, "")
    assert err.startswith("cifarnet: error: ")
    assert "nowhere" in err
    assert err.count("\n") == 1
    with pytest.raises(CifarnetError):
        run("evaluate", "nowhere", "--data", "synthetic", "--debug")


def test_a_directory_that_holds_a_run_is_refused(run: Run) -> None:
    options = ("train", "--data", "synthetic", "--epochs", "1")
    assert run(*options)[0] == 0
    code, _, err = run(*options)
    assert code == 1
    assert "runs/reference holds a run. Continue it with resume=True (--resume)" in err


def test_a_directory_that_cannot_be_written_is_refused_before_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("train", "--data", "synthetic", "--epochs", "1", "--out", "file/run")
    assert code == 1
    assert "cannot write to" in err
    assert "epoch" not in err


def test_a_missing_data_set_is_told_with_its_remedies(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cifarnet.data.cifar10.ADDRESSES", ("http://127.0.0.1:9/x.tar.gz",))
    (tmp_path / "data").mkdir()
    code, _, err = run("train", "--data", str(tmp_path / "data"))
    assert code == 1
    for remedy in ("--data", "CIFARNET_DATA", "cifar-10-binary.tar.gz", "synthetic"):
        assert remedy in err
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_synthetic_is_told_and_not_downloaded_to(run: Run, tmp_path: Path) -> None:
    code, _, err = run("train", "--data", "syntetic")
    assert code == 2
    assert 'there is no such folder. Did you mean "synthetic"?' in err
    assert list(tmp_path.iterdir()) == []


def test_a_named_folder_that_does_not_exist_is_not_replaced_by_cifar10(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    code, _, err = run("train", "--data", "phtos")
    assert code == 2
    assert 'phtos: there is no such folder. Did you mean "photos"?' in err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_home_directory_is_expanded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = ("train", "--data", "synthetic", "--epochs", "1", "--recipe", "basic")
    assert run(*options, "--out=~/run")[0] == 0
    assert run("evaluate", "~/run", "--data=synthetic")[0] == 0
    assert run("export", "~/run", "--format=torch", "--out=~/a.pt2")[0] == 0
    assert not (tmp_path / "~").exists()
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run", "a.pt2"}


def test_a_folder_of_something_else_is_not_downloaded_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos" / "Train").mkdir(parents=True)
    code, _, err = run("train", "--data", "photos")
    assert code == 1
    assert "photos: the folder holds neither CIFAR-10 nor train/CLASS/" in err


def test_the_checkpoint_of_another_architecture_is_refused(run: Run, tmp_path: Path) -> None:
    assert run("train", "--data", "synthetic", "--epochs", "1")[0] == 0
    best = tmp_path / "runs/reference/best.safetensors"
    checkpointer = Checkpointer(best.parent)
    weights, description = checkpointer.read_best()
    weights["fc2.weight"] = weights["fc2.weight"][:7].clone()
    checkpointer.save_best(weights, description)
    code, _, err = run("evaluate", "runs/reference", "--data", "synthetic")
    assert code == 1
    assert "fc2.weight is 7x512 in the file, 10x512 in the model" in err
    assert "It describes CifarCNN(" in err
    assert "num_classes=10" in err


def test_an_image_folder_trains_a_network_for_its_classes(run: Run, tmp_path: Path) -> None:
    data = make_synthetic(num_train=40, num_test=20, seed=1)
    for split, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
            if label < 3:
                folder = tmp_path / "photos" / split / f"class-{label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    code, _, err = run("train", "--data", "photos", "--epochs", "1", "--out", "runs/photos")
    assert code == 0, err
    assert Classifier.load("runs/photos").classes == ("class-0", "class-1", "class-2")
    shutil.copytree(tmp_path / "photos" / "test", tmp_path / "photos" / "val")
    code, out, err = run("train", "--data", "photos", "--epochs", "1", "--out", "runs/val", "--json")
    assert code == 0, err
    assert json.loads(out)["selected_by"]["monitor"] == "val_accuracy"
    code, _, err = run("train", "--data", "photos", "--val-fraction", "0.1", "--out", "runs/both")
    assert code == 2
    assert "photos has a val/ folder, which chooses the best epoch. Leave --val-fraction out" in err


def test_ctrl_c_ends_with_a_line_and_the_shells_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cifarnet.cli.commands.build_trainer", interrupt)
    monkeypatch.setattr("cifarnet.cli.demo.make_synthetic", interrupt)
    code, _, err = run("train", "--data", "synthetic")
    assert code == 130
    assert err == "cifarnet: interrupted; a run that was begun goes on with --resume\n"
    assert run("demo")[2] == "cifarnet: interrupted; cifarnet demo goes on where it was\n"


def test_help_and_wrong_use_need_no_torch(tmp_path: Path) -> None:
    words = [
        *(["--help"], ["--version"], ["trian"], ["train", "--epohcs", "3"], ["train", "--epochs", "many"]),
        *([command, "--help"] for command in build_parser()[1]),
        *(["bench", benchmark, "--help"] for benchmark in BENCHMARKS),
    ]
    code = (
        "import sys\n"
        "from cifarnet.cli import main\n"
        f"for words in {words}:\n"
        "    try: code = main(words)\n"
        "    except SystemExit as exit: code = exit.code\n"
        "    assert code == (0 if words[-1][:2] == '--' else 2), (words, code)\n"
        "    assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), words\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert 'unknown command "trian"; did you mean "train"?' in result.stderr


@pytest.mark.parametrize("imported", ["numpy.linalg", "torch.version", "torchvision"])
def test_ctrl_c_while_torch_is_imported_ends_with_a_line_too(imported: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cifarnet", "info"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            if not line.startswith("import time:"):
                told.append(line)
            elif line.split()[-1] == imported:
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130, told
    assert told == ["cifarnet: interrupted\n"]


def test_what_the_help_names_is_all_that_there_is() -> None:
    assert tuple(recipes.RECIPES) == RECIPE_NAMES
    assert tuple(export._WRITERS) == EXPORT_FORMATS
    (subparsers,) = (action for action in build_parser()[1]["bench"]._actions if action.choices)
    assert tuple(BENCHMARKS) == tuple(subparsers.choices or ())


def test_the_module_and_the_console_script_are_one_program(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-m", "cifarnet", "train", "--recipe", "referenc"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == 'cifarnet: error: unknown recipe "referenc"; did you mean "reference"?\n'


def test_a_warning_is_one_line_on_stderr(run: Run) -> None:
    options = ("train", "--data", "synthetic", "--resume", "--out", "r")
    assert run(*options, "--epochs", "1", "--precision", "float32")[0] == 0
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run(*options, "--epochs", "2", "--precision", "bf16")
    assert code == 0
    assert err.startswith("warning: precision float32 in the run, bf16 now")


def test_every_command_helps_with_examples(run: Run) -> None:
    for command in ("demo", "train", "evaluate", "predict", "export", "report", "recipes", "info"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"examples:\n  cifarnet {command}" in out
        assert all(name in out for name in recipes.RECIPES) or command != "train"
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "train", "evaluate", "predict", "export", "report", "recipes", "info"):
        assert f"    {command} " in out


def test_every_example_of_the_help_is_a_command_that_parses(run: Run) -> None:
    parser, commands = build_parser()
    pages = [parser.format_help(), *(command.format_help() for command in commands.values())]
    examples = [line for page in pages for line in re.findall(r"^  cifarnet (\w.*?)(?:  +.*)?$", page, re.MULTILINE)]
    assert len(examples) > 15
    for example in examples:
        assert callable(load_command(parser.parse_args(example.split()).run))


def test_predict_tells_what_pictures_of_any_size_show(run: Run, tmp_path: Path) -> None:
    assert run("train", "--data", "synthetic", "--epochs", "1")[0] == 0
    images = make_synthetic(1, 3, seed=9, size=70).test.images
    for i, suffix in enumerate(("png", "jpg", "webp")):
        Image.fromarray(images[i, :, :, i:].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.{suffix}")
    paths = ("0.png", "1.jpg", "2.webp")
    code, out, err = run("predict", "runs/reference", *paths, "--top", "2", "--json")
    assert code == 0, err
    document = json.loads(out)
    classifier = Classifier.load("runs/reference")
    expected = [classifier.predict(path, top_k=2) for path in paths]
    assert [p["image"] for p in document["predictions"]] == list(paths)
    for told, prediction in zip(document["predictions"], expected, strict=True):
        assert told["label"] == prediction.label
        assert told["probability"] == prediction.probability
        assert [tuple(pair) for pair in told["top"]] == list(prediction.top)
    code, out, _ = run("predict", "runs/reference/best.safetensors", *paths, "--top", "2")
    assert code == 0
    assert out.splitlines() == [f"{path}: {prediction}" for path, prediction in zip(paths, expected, strict=True)]
    code, told, err = run("predict", "runs/reference", "0.png", "cat.png", "1.jpg", "--top", "2")
    assert (code, err[:30]) == (1, "cifarnet: error: cat.png: no s")
    assert told.splitlines() == out.splitlines()[:2]  # what can be read is told all the same
    document = json.loads(run("predict", "runs/reference", "0.png", "cat.png", "--json")[1])
    assert [len(p["top"]) for p in document["predictions"]] == [10]
    assert "cat.png: no such file" in document["errors"][0]
    assert "0.png is a picture; the run comes first" in run("predict", "0.png", "runs/reference")[2]
    code, _, err = run("predict", "runs/reference", "0.png", "--top", "0")
    assert code == 2
    assert "--top must be at least 1, got 0" in err


def test_export_leaves_a_file_beside_the_weights_and_tells_how_far_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("train", "--data", "synthetic", "--epochs", "1", "--precision", "bf16", "--out", "a")[0] == 0
    code, out, err = run("export", "a")
    assert (code, err) == (0, "")
    size = (tmp_path / "a/model.onnx").stat().st_size
    first, second, third = out.splitlines()
    assert first == f"a/model.onnx: {size / 1e6:.1f} MB, uint8 images (N, 3, 32, 32) to probabilities, in float32"
    assert re.fullmatch(r"largest difference from the library: \d\.\de-0[5-9], over 72 images", second)
    assert re.fullmatch(r"from the library in bf16, the run's own: \d\.\de-0[1-4]", third)
    code, out, err = run("export", "a/best.safetensors", "--format", "torch", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["path"] == "a/model.pt2"
    assert (document["run"], document["format"]) == ("a/best.safetensors", "torch")
    assert document["num_bytes"] == (tmp_path / "a/model.pt2").stat().st_size
    assert 0 < document["difference"] <= document["tolerance"] == 1e-4
    assert (document["precision"], document["run_precision"]) == ("float32", "bf16")
    assert "to read a .pt2 can run code" in run("export", "a", "--format", "torch", "--out", "b.pt2")[1]
    assert (tmp_path / "b.pt2").read_bytes() == (tmp_path / "a/model.pt2").read_bytes()

    best = (tmp_path / "a/best.safetensors").read_bytes()
    code, _, err = run("export", "a", "--out", "a/best.safetensors")
    assert (code, err[:56]) == (2, 'cifarnet: error: the file must end in ".onnx", got "a/be')
    assert (tmp_path / "a/best.safetensors").read_bytes() == best
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = run("export", "a", "--out", "c.onnx")
    assert code == 1
    assert 'onnxscript is not installed; pip install "cifarnet[onnx]"' in err
    assert not (tmp_path / "c.onnx").exists()


def test_numbers_with_test_time_augmentation_say_so(run: Run, tmp_path: Path) -> None:
    assert run("train", "--data", "synthetic", "--epochs", "1", "--out", "a")[0] == 0
    Image.new("RGB", (40, 30), (200, 30, 30)).save("a.png")
    classifier = Classifier.load("a")
    test = make_synthetic(num_train=200, num_test=60, seed=0).test
    losses = set()
    for tta in (None, "flip", "flip+shift"):
        option = () if tta is None else ("--tta", tta)
        expected = classifier.evaluate(test, tta=tta)
        document = json.loads(run("evaluate", "a", *option, "--json")[1])
        assert document["tta"] == tta
        assert (document["accuracy"], document["loss"]) == (expected.accuracy, expected.loss)
        losses.add(document["loss"])
        told = run("evaluate", "a", *option)[1]
        assert told == f"{test.name}: test {expected.table()}\n"
        assert told.startswith(f"{test.name}: test {expected}\n")
        assert ("with test-time augmentation" in told) == (tta is not None)

        prediction = classifier.predict("a.png", tta=tta)
        document = json.loads(run("predict", "a", "a.png", *option, "--json")[1])
        assert document["tta"] == tta
        assert document["predictions"][0]["probability"] == prediction.probability
        how = "" if tta is None else f", with test-time augmentation ({tta})"
        assert run("predict", "a", "a.png", *option)[1] == f"a.png: {prediction}{how}\n"
    assert len(losses) == 3


def test_evaluate_takes_the_runs_own_data_and_never_downloads_others(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    data = make_synthetic(num_train=30, num_test=10, seed=1)
    for split, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(images):
            (folder / split / f"class-{label % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / split / f"class-{label % 2}" / f"{i}.png")
    assert run("train", "--data", "photos", "--epochs", "1", "--out", "a")[0] == 0
    code, out, err = run("evaluate", "a", "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"] == load_report("a/report.json")["metrics"]["test_accuracy"]
    photos = load_image_folder(folder, size=40)
    large = Classifier(
        CifarCNN(2, image_size=40, hidden=16), Preprocess(40), photos.test.classes, device="cpu", precision="float32"
    )
    large.save("large")
    expected = large.evaluate(photos.test).loss
    document = json.loads(run("evaluate", "large", "--data", "photos", "--json")[1])
    assert document["loss"] == expected, "as large as the network wants them, not enlarged from 32 pixels"
    folder.rename(tmp_path / "elsewhere")
    code, _, err = run("evaluate", "a")
    assert code == 1
    assert "a was trained on class-0, class-1, ... . Name images of these classes with --data" in err


def test_demo_goes_the_whole_way_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def small(num_train: int = 200, num_test: int = 60, *, seed: int = 0, size: int = 32) -> DatasetSplits:
        return make_synthetic(num_train, num_test, seed=seed, size=size)

    monkeypatch.setattr("cifarnet.cli.demo.make_synthetic", small)
    code, out, err = run("demo", "--out", "here")
    assert code == 0, err
    for step in range(1, 7):
        assert f"\n{step}. " in "\n" + out
    assert err.count("epoch ") == 6
    for name in ("training_curves.png", "predictions.png", "architecture.png"):
        assert f"here/{name}" in out
        with Image.open(tmp_path / "here" / name) as figure:
            assert min(figure.size) > 300
    best = History.load_csv("here/history.csv").best()
    assert best is not None
    assert f"weights of epoch {best.epoch}, the best" in out

    code, out, err = run("demo", "--out", "here", "--json")
    assert code == 0
    assert "Run already finished (6/6)" in err
    assert "6. Figures" in err
    document = json.loads(out)
    data = small()
    assert document["num_correct"] == Classifier.load("here").evaluate(data.test).num_correct
    for told in document["predictions"]:
        with Image.open(told["image"]) as picture:
            assert picture.width != picture.height
        assert told["label"] == Classifier.load("here").predict(told["image"]).label

    typed = re.search(r"^  cifarnet (predict .*)$", run("demo", "--out", "here")[1], re.MULTILINE)
    assert typed is not None
    assert run(*typed[1].split())[0] == 0


def test_no_command_but_those_that_draw_brings_matplotlib(run: Run, tmp_path: Path) -> None:
    assert run("train", "--data", "synthetic", "--epochs", "1", "--out", "r")[0] == 0
    Image.new("RGB", (40, 30)).save("a.png")
    code = (
        "import sys; from cifarnet.cli import main; codes = [main(['info']), main(['predict', 'r', 'a.png']), "
        "main(['evaluate', 'r', '--data', 'synthetic'])]; print(codes, 'matplotlib' in sys.modules)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines()[-1] == "[0, 0, 0] False"


def test_output_survives_a_closed_pipe_and_a_terminal_that_knows_no_accents(run: Run, tmp_path: Path) -> None:
    assert run("train", "--data", "synthetic", "--epochs", "1", "--out", "r")[0] == 0
    name = "\N{LATIN SMALL LETTER E WITH ACUTE}.png"
    Image.new("RGB", (40, 30)).save(name)
    command = [sys.executable, "-m", "cifarnet", "predict", "r", name]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout[:9]) == (0, "\\xe9.png:")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_numbers_that_json_does_not_have_are_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarnet.cli.commands.describe_device", lambda _: float("inf"))
    code, out, _ = run("info", "--json")
    assert code == 0
    assert json.loads(out, parse_constant=pytest.fail)["hardware"] == "inf"


def test_lines_that_say_what_is_next_can_be_pasted(run: Run) -> None:
    code, out, err = run("train", "--data", "synthetic", "--recipe", "basic", "--epochs", "1", "--out", "my runs/a")
    assert code == 0, err
    assert "next: cifarnet predict 'my runs/a' IMAGE" in out
