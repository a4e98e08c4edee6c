"""The commands. Each returns a document for ``--json``, and the same as text."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image

import cifarnet
from cifarnet._console import write_line
from cifarnet._files import check_target
from cifarnet._validation import check_choice, check_count
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.cli.arguments import EXPORT_FORMATS, TTA_NAMES
from cifarnet.cli.data_source import load_data, source_of
from cifarnet.data import ImageDataset, find_cifar10
from cifarnet.data.dataset import check_split
from cifarnet.errors import DataError, SettingError
from cifarnet.inference import resolve_device, resolve_precision
from cifarnet.inference.device import describe_device
from cifarnet.recipes import RECIPES, build_trainer, get_recipe
from cifarnet.recipes.named import measured_results
from cifarnet.report import build_page, build_report, load_run, save_page, save_report
from cifarnet.report.tables import format_result
from cifarnet.training import History
from cifarnet.training.distributed import ProcessGroup

__all__ = ["evaluate", "export", "info", "predict", "recipes", "report", "save_figures", "train"]

Result = tuple[dict[str, Any], str]

#: Runs with different seeds have the same validation images, so their mean is over the same data.
SPLIT_SEED = 0


def train(args: argparse.Namespace, command: str) -> Result:
    """Train a recipe; write checkpoints, report, history and figures. With several processes, rank 0 writes."""
    if args.deterministic:  # torch reads it at the first matrix product of the process
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recipe = get_recipe(args.recipe)
    changes = {"max_epochs": args.epochs, "batch_size": args.batch_size}
    recipe = replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    device, group = resolve_device(args.device), ProcessGroup.current()
    resolve_precision(args.precision, device)
    check_count("seed", args.seed, "0 is the default", least=0)  # all checks come before the data are read
    if args.val_fraction is not None:
        check_split(args.val_fraction, SPLIT_SEED)
    out = args.out or Path("runs") / recipe.name
    checkpointer = Checkpointer(out, save_every_s=args.save_every, metadata={"recipe": asdict(recipe)})

    group.join(device)
    with group.first_of_each_machine():  # downloads
        data = load_data(args.data, tell=not group.rank)
    train, val = data.train, data.val
    if args.val_fraction is not None and val is not None:
        raise SettingError(f"{args.data} has a val/ folder, which chooses the best epoch. Leave --val-fraction out")
    if args.val_fraction is not None:
        train, val = train.split(args.val_fraction, seed=SPLIT_SEED)
    trainer = build_trainer(
        recipe,
        train,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        deterministic=args.deterministic,
        cuda_graph=not args.no_cuda_graph,
    )
    trainer.fit(
        train,
        val,
        test=data.test if recipe.watch_test else None,
        max_epochs=recipe.max_epochs,
        batch_size=recipe.batch_size,
        checkpointer=checkpointer,
        resume=args.resume,
    )
    evaluation = trainer.evaluate(data.test)
    evaluation_tta = None if recipe.tta is None else trainer.evaluate(data.test, tta=recipe.tta)
    if group.rank:
        return {}, ""
    classifier = Classifier.load(out, device=args.device)
    calibrated = None if val is None or not _calibrate(classifier, val, out) else classifier.evaluate(data.test)
    document = build_report(
        trainer,
        recipe,
        train=train,
        val=val,
        test=data.test,
        evaluation=evaluation,
        evaluation_tta=evaluation_tta,
        evaluation_calibrated=calibrated,
        command=command,
        version=cifarnet.__version__,
    )
    document["data"]["source"] = args.data
    save_report(document, out / "report.json")
    trainer.history.save_csv(out / "history.csv")
    figures = save_figures(out, classifier, trainer.history, data.test)
    epoch, monitor = document["selected_by"]["epoch"], document["selected_by"]["monitor"]
    reason = "the last epoch, because there are no validation images" if monitor == "final" else f"the best {monitor}"
    lines = [f"{recipe.name}, seed {args.seed}: test {evaluation}"]
    lines += [] if evaluation_tta is None else [f"test {evaluation_tta}"]
    lines += [f"weights of epoch {epoch}, {reason}"]
    if calibrated is not None:
        lines += [
            f"probabilities calibrated on the validation images: temperature {calibrated.temperature:.3f}; test "
            f"calibration error {calibrated.expected_calibration_error:.2%}, before "
            f"{evaluation.expected_calibration_error:.2%}"
        ]
    lines += [f"{out}: report.json, history.csv, best.safetensors, last.safetensors, {', '.join(figures)}"]
    return document, "\n".join([*lines, f"next: cifarnet predict {shlex.quote(str(out))} IMAGE"])


def _calibrate(classifier: Classifier, val: ImageDataset, directory: Path) -> bool:
    """Fit the temperature on the validation images, and save it in the best checkpoint. ``False`` if none fits."""
    try:
        classifier.calibrate(val)
    except DataError as error:
        write_line(f"probabilities are not calibrated: {error}")
        return False
    classifier.save(directory)
    return True


def save_figures(directory: Path, classifier: Classifier, history: History, test: ImageDataset) -> list[str]:
    """Draw curves, predictions and architecture into the directory of a run, and return the names of the files."""
    from cifarnet import visualize  # imports matplotlib, which the other commands do not need

    figures = {
        "training_curves.png": visualize.plot_training_curves(history),
        "predictions.png": visualize.plot_predictions(classifier, test),
        "architecture.png": visualize.plot_architecture(classifier.model),
    }
    for name, figure in figures.items():
        figure.savefig(directory / name)
    return list(figures)


def evaluate(args: argparse.Namespace, command: str) -> Result:
    """Evaluate the best weights of a run on test images."""
    if args.tta is not None:
        check_choice("--tta", args.tta, TTA_NAMES)
    classifier = Classifier.load(args.path, device=args.device)
    test = load_data(args.data or source_of(args.path, classifier), size=classifier.preprocess.size).test
    evaluation = classifier.evaluate(test, tta=args.tta)
    document: dict[str, Any] = {"command": command, "path": str(args.path), "data": test.name}
    document |= {"selected_by": classifier.selected_by, "precision": classifier.precision.name}
    document |= evaluation.to_dict()
    return document, f"{test.name}: test {evaluation.table()}"


def predict(args: argparse.Namespace, command: str) -> Result:
    """Predict the class of pictures, one line per picture. A picture that cannot be read does not stop the others."""
    if args.top is not None:
        check_count("--top", args.top, "5 is the default")
    if args.tta is not None:
        check_choice("--tta", args.tta, TTA_NAMES)
    resolve_device(args.device)
    if args.path.suffix.lower() in Image.registered_extensions():
        raise SettingError(f"{args.path} is a picture; the run comes first: cifarnet predict RUN IMAGE")
    classifier = Classifier.load(args.path, device=args.device)
    top_k = args.top or (2**31 if args.json else 5)
    pairs, errors = [], []
    for image in args.images:
        try:
            pairs.append((image, classifier.predict(image, top_k=top_k, tta=args.tta)))
        except DataError as error:
            errors.append(str(error))
    predictions = [{"image": str(image), **asdict(prediction)} for image, prediction in pairs]
    document = {"command": command, "path": str(args.path), "tta": args.tta, "predictions": predictions}
    suffix = "" if args.tta is None else f", with test-time augmentation ({args.tta})"
    return {**document, "errors": errors}, "\n".join(f"{image}: {prediction}{suffix}" for image, prediction in pairs)


def export(args: argparse.Namespace, command: str) -> Result:
    """Export the best weights of a run, and compare the file with the library."""
    from cifarnet.export import TOLERANCE, export_onnx, export_torch

    check_choice("--format", args.format, EXPORT_FORMATS)
    write, name = (export_onnx, "model.onnx") if args.format == "onnx" else (export_torch, "model.pt2")
    classifier = Classifier.load(args.path, device="cpu")
    exported = write(classifier, args.out or _directory_of(args.path) / name)
    document = {"command": command, "run": str(args.path), "format": args.format, **asdict(exported)}
    document |= {"path": str(exported.path), "tolerance": TOLERANCE, "precision": "float32"}
    document["run_precision"] = classifier.precision.name
    channels, size = len(classifier.preprocess.mean), classifier.preprocess.size
    lines = [
        f"{exported.path}: {exported.num_bytes / 1e6:.1f} MB, uint8 images (N, {channels}, {size}, {size}) to "
        "probabilities, in float32",
        f"largest difference from the library: {exported.difference:.1e}, over {exported.num_images} images",
    ]
    if document["run_precision"] != "float32":
        lines.append(f"from the library in {document['run_precision']}, as trained: {exported.difference_from_run:.1e}")
    if args.format == "torch":
        lines.append("a .pt2 can execute code when it is read: read only files from people you trust")
    return document, "\n".join(lines)


def report(args: argparse.Namespace, command: str) -> Result:
    """Write the HTML page of a run."""
    if args.out is not None:
        check_target(args.out, ".html", name="report")  # before the run is read
    run = load_run(args.path, device=args.device)
    out = check_target(args.out or _directory_of(args.path) / "report.html", ".html", name="report")
    test = load_data(args.data or source_of(args.path, run.classifier), size=run.classifier.preprocess.size).test
    page = build_page(run, test)
    path = save_page(page, out)
    num_bytes = path.stat().st_size
    document: dict[str, Any] = {"command": command, "run": str(args.path), "path": str(path), "data": test.name}
    document |= {"sections": list(page.sections), "left_out": dict(page.left_out), "remarks": list(page.remarks)}
    document |= {"num_bytes": num_bytes, **page.evaluation.to_dict()}
    lines = [f"{path}: {num_bytes / 1e6:.1f} MB, {len(page.sections)} sections; {test.name}: test {page.evaluation}"]
    lines += [f"left out, {section}: {reason}" for section, reason in page.left_out.items()]
    return document, "\n".join([*lines, *page.remarks])


def _directory_of(run: Path) -> Path:
    return run if run.is_dir() else run.parent


def recipes(args: argparse.Namespace, command: str) -> Result:
    """List the recipes with their measured results."""
    document: dict[str, Any] = {"command": command, "recipes": {}}
    lines = []
    for name, recipe in RECIPES.items():
        results = measured_results(name)
        document["recipes"][name] = {**asdict(recipe), "results": results}
        measured = [f"{format_result(result)}, {result['hardware']}" for result in results] or ["no measured result"]
        lines += [f"{name:<16} {recipe.summary}", *(f"{'':<16} {line}" for line in measured)]
    return document, "\n".join([*lines, "", "next: cifarnet train --recipe NAME"])


def info(args: argparse.Namespace, command: str) -> Result:
    """Show versions, hardware and the location of CIFAR-10."""
    device, found = resolve_device(), find_cifar10()
    document: dict[str, Any] = {
        "cifarnet": cifarnet.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "device": device.type,
        "hardware": describe_device(device),
        "precision": resolve_precision("auto", device).name,
        "cifar10": None if found is None else str(found),
        "CIFARNET_DATA": os.environ.get("CIFARNET_DATA"),
    }
    return document, "\n".join(f"{key:<14} {value}" for key, value in document.items())
