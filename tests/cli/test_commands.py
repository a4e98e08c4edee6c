"""The commands train, evaluate, predict, export, report, demo, recipes and info."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifarnet import CifarCNN, Classifier, Evaluation, History, Preprocess, make_synthetic, recipes
from cifarnet.checkpoint import read_checkpoint
from cifarnet.datasets import DatasetSplits, load_image_folder
from cifarnet.report import load_report, read_reports, summarize_seeds

Run = Callable[..., tuple[int, str, str]]
SYNTHETIC = ("--data", "synthetic", "--recipe", "basic")
DATA = make_synthetic(num_train=200, num_test=60, seed=0)


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
    assert report["recipe"]["max_epochs"] == 2
    assert report["data"]["val"]["num_images"] + report["data"]["train"]["num_images"] == 200
    history = History.load_csv(folder / "history.csv")
    assert history == History.from_list(report["history"])
    assert report["selected_by"]["value"] == max(history["val_accuracy"])
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
    assert metrics["calibrated"]["test_calibration_error"] == evaluation.expected_calibration_error
    document = json.loads(run("evaluate", "a", "--json")[1])
    assert document["temperature"] == chosen
    assert Evaluation.from_dict({key: document[key] for key in evaluation.to_dict()}) == evaluation
    classifier.temperature = 1.0
    plain = classifier.evaluate(DATA.test)
    assert (metrics["test_log_loss"], metrics["test_brier"]) == (plain.log_loss, plain.brier)
    assert classifier.calibrate(DATA.train.split(0.25, seed=0)[1]) == chosen


def test_every_seed_has_the_same_validation_images(run: Run) -> None:
    for seed in ("0", "1"):
        options = ("--epochs", "1", "--val-fraction", "0.1", "--seed", seed, "--out", f"runs/seed-{seed}")
        assert run("train", *SYNTHETIC, *options)[0] == 0
    assert summarize_seeds(read_reports("runs"))["n"] == 2


def test_resume_after_kill_is_bit_identical(run: Run, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", DATA, 10)
    options = ("train", "--data", "photos", "--epochs", "3", "--precision", "bf16", "--save-every", "0")
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
    assert run("train", "--data", "photos", "--epochs", "1", "--out", "a")[0] == 0
    code, out, err = run("evaluate", "a", "--json")  # the run knows its data
    assert code == 0, err
    assert json.loads(out)["accuracy"] == load_report("a/report.json")["metrics"]["test_accuracy"]
    photos = load_image_folder(tmp_path / "photos", size=40)
    assert Classifier.load("a").classes == photos.test.classes == ("class-0", "class-1")
    large = Classifier(CifarCNN(2, image_size=40, hidden=16), Preprocess(40), photos.test.classes, precision="float32")
    large.save("large")
    document = json.loads(run("evaluate", "large", "--data", "photos", "--json")[1])
    assert document["loss"] == large.evaluate(photos.test).loss, "photos are read in the size of the network"
    shutil.copytree("photos/test", "photos/val")
    code, out, err = run("train", "--data", "photos", "--epochs", "1", "--out", "b", "--json")
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
    assert (document["tta"], document["accuracy"], document["loss"]) == ("flip", evaluation.accuracy, evaluation.loss)
    text = run("evaluate", "a/best.safetensors", *options)[1]
    assert text == f"{DATA.test.name}: test {evaluation.table()}\n"
    assert "with test-time augmentation" in text
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
    for path, prediction, printed in zip(paths, expected, document["predictions"], strict=True):
        assert (printed["image"], printed["label"]) == (path, prediction.label)
        assert [tuple(pair) for pair in printed["top"]] == list(prediction.top)
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
    code, out, _ = run("export", "a/best.safetensors", "--format", "torch", "--json")
    document = json.loads(out)
    assert (code, document["path"], document["run"]) == (0, "a/model.pt2", "a/best.safetensors")
    assert document["num_bytes"] == (a / "model.pt2").stat().st_size
    assert 0 < document["difference"] <= document["tolerance"] == 1e-4
    assert (document["precision"], document["run_precision"]) == ("float32", "bf16")
    assert "a .pt2 can execute code" in run("export", "a", "--format", "torch", "--out", "b.pt2")[1]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = run("export", "a", "--out", "c.onnx")
    assert (code, 'onnxscript is not installed; pip install "cifarnet[onnx]"' in err) == (1, True)


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
    for printed in document["predictions"]:
        assert printed["label"] == classifier.predict(printed["image"]).label
    assert all((tmp_path / path).exists() for path in document["figures"])


def test_recipes_are_listed_with_their_results(run: Run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    for name, recipe in recipes.RECIPES.items():
        assert re.search(rf"^{name} +{re.escape(recipe.summary)}$", out, flags=re.MULTILINE)
    measured = recipes.measured_results("reference")[0]
    assert f"{100 * measured['test_accuracy']['mean']:.2f} ± " in out
    assert json.loads(run("recipes", "--json")[1])["recipes"]["reference"]["results"][0] == measured


def test_info_shows_versions_and_no_cifar10(run: Run) -> None:
    document = json.loads(run("info", "--json")[1])
    assert (document["torch"], document["cifar10"]) == (str(torch.__version__), None)
    assert f"torch          {torch.__version__}" in run("info")[1]
