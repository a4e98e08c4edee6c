"""``train``, ``evaluate``, ``predict``, ``info``: each gives a document for ``--json``, and the same as text."""

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
from cifarnet._choices import TTA_NAMES
from cifarnet._console import write_line
from cifarnet._validation import check_choice, check_count
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.cli.data import load_data, source_of
from cifarnet.cli.figures import save_figures
from cifarnet.data import ImageDataset, check_split, find_cifar10
from cifarnet.errors import InputError, SettingError
from cifarnet.inference import Evaluation, describe_device, resolve_device, resolve_precision
from cifarnet.recipes import RECIPES, build_trainer, get_recipe, measured_results
from cifarnet.report import build_report, format_result, save_report
from cifarnet.training.distributed import ProcessGroup

__all__ = ["evaluate", "predict", "show_info", "show_recipes", "train"]

#: Runs of all seeds hold out the same images: their mean is one over the same data.
SPLIT_SEED = 0


def train(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Train a recipe and leave a run: checkpoints, report, history, figures. Of several processes the first does so."""
    if args.deterministic:  # torch reads it at the first matrix product of the process
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recipe = get_recipe(args.recipe)
    changes = {"max_epochs": args.epochs, "batch_size": args.batch_size}
    recipe = replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    device, group = resolve_device(args.device), ProcessGroup.current()
    resolve_precision(args.precision, device)
    check_count("seed", args.seed, "0 is the default", least=0)  # all of this before anything is read
    if args.val_fraction is not None:
        check_split(args.val_fraction, SPLIT_SEED)
    checkpointer = Checkpointer(
        args.out or Path("runs") / recipe.name, save_every_s=args.save_every, metadata={"recipe": asdict(recipe)}
    )
    out = checkpointer.directory

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
    report = build_report(
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
    report["data"]["source"] = args.data
    save_report(report, out / "report.json")
    trainer.history.save_csv(out / "history.csv")
    figures = save_figures(out, classifier, trainer.history, data.test)
    return report, (
        f"{recipe.name}, seed {args.seed}: test {evaluation}\n"
        f"{'' if evaluation_tta is None else f'test {evaluation_tta}{chr(10)}'}"
        f"weights of epoch {report['selected_by']['epoch']}, {_how(report['selected_by']['monitor'])}\n"
        f"{'' if calibrated is None else _compare(evaluation, calibrated)}"
        f"{out}: report.json, history.csv, best.safetensors, last.safetensors, {', '.join(figures)}\n"
        f"next: cifarnet predict {shlex.quote(str(out))} IMAGE"
    )


def _calibrate(classifier: Classifier, val: ImageDataset, directory: Path) -> bool:
    """Whether a temperature was found on the held-out images, and is in the run's best checkpoint now."""
    try:
        classifier.calibrate(val)
    except InputError as error:
        write_line(f"probabilities are not calibrated: {error}")
        return False
    classifier.save(directory)
    return True


def _compare(evaluation: Evaluation, calibrated: Evaluation) -> str:
    return (
        f"probabilities calibrated on the held-out images: temperature {calibrated.temperature:.3f}; test calibration "
        f"error {calibrated.expected_calibration_error:.2%}, without {evaluation.expected_calibration_error:.2%}\n"
    )


def _how(monitor: str) -> str:
    return "the last one: nothing was held out to choose by" if monitor == "final" else f"the best in {monitor}"


def evaluate(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Score the best weights of a run on test images."""
    _check_tta(args.tta)
    classifier = Classifier.load(args.path, device=args.device)
    test = load_data(args.data or source_of(args.path, classifier), size=classifier.preprocess.size).test
    evaluation = classifier.evaluate(test, tta=args.tta)
    document: dict[str, Any] = {
        "command": command,
        "path": str(args.path),
        "data": test.name,
        "selected_by": classifier.selected_by,
        "precision": classifier.precision.name,
        **evaluation.to_dict(),
    }
    return document, f"{test.name}: test {evaluation.table()}"


def predict(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Tell what pictures show, a line each; one that cannot be read does not cost the others."""
    if args.top is not None:
        check_count("--top", args.top, "5 is the default")
    _check_tta(args.tta)
    resolve_device(args.device)
    if args.path.suffix.lower() in Image.registered_extensions():
        raise SettingError(f"{args.path} is a picture; the run comes first: cifarnet predict RUN IMAGE")
    classifier = Classifier.load(args.path, device=args.device)
    top_k = args.top or (2**31 if args.json else 5)
    pairs, errors = [], []
    for image in args.images:
        try:
            pairs.append((image, classifier.predict(image, top_k=top_k, tta=args.tta)))
        except InputError as error:
            errors.append(str(error))
    document: dict[str, Any] = {
        "command": command,
        "path": str(args.path),
        "tta": args.tta,
        "predictions": [{"image": str(image), **asdict(prediction)} for image, prediction in pairs],
        "errors": errors,
    }
    told = "" if args.tta is None else f", with test-time augmentation ({args.tta})"
    return document, "\n".join(f"{image}: {prediction}{told}" for image, prediction in pairs)


def _check_tta(name: str | None) -> None:
    """Before anything is read."""
    if name is not None:
        check_choice("--tta", name, TTA_NAMES)


def show_recipes(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """List the recipes, with the results that are known of them."""
    document: dict[str, Any] = {"command": command, "recipes": {}}
    lines = []
    for name, recipe in RECIPES.items():
        results = measured_results(name)
        document["recipes"][name] = {**asdict(recipe), "results": results}
        lines.append(f"{name:<16} {recipe.summary}")
        lines += [f"{'':<16} {format_result(result)}, {result['hardware']}" for result in results]
        lines += [] if results else [f"{'':<16} not measured yet"]
    return document, "\n".join([*lines, "", "next: cifarnet train --recipe NAME"])


def show_info(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Tell versions, hardware, recipes, and where CIFAR-10 is."""
    device = resolve_device()
    found = find_cifar10()
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
        "recipes": {recipe.name: recipe.summary for recipe in RECIPES.values()},
    }
    lines = [f"{key:<14} {value}" for key, value in document.items() if not isinstance(value, dict)]
    lines += ["recipes", *(f"  {name:<12} {summary}" for name, summary in document["recipes"].items())]
    return document, "\n".join(lines)
