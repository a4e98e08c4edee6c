"""``cifarnet demo``: from training to prediction on synthetic images."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cifarnet._console import write_line
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.cli.commands import save_figures
from cifarnet.data import make_synthetic
from cifarnet.recipes import build_trainer, get_recipe

__all__ = ["demo"]

_EPOCHS = 6


def demo(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Train, reload, evaluate, predict and draw, and print each step."""
    out = args.out or Path("runs/demo")
    say = write_line if args.json else _print
    # There are few images, so the network is smaller and has less dropout.
    recipe = replace(get_recipe("reference"), model_arguments={"hidden": 128, "dropout": 0.2}, max_epochs=_EPOCHS)
    data = make_synthetic()
    train, val = data.train.split(0.1, seed=0)
    trainer = build_trainer(recipe, train, device=args.device)
    say(f"1. Data: {len(train):,} training and {len(val):,} validation images of {', '.join(train.classes)}.")
    say(
        f"2. Training: the network of the reference recipe with fewer hidden units, {_EPOCHS} epochs on "
        f"{trainer.device} in {trainer.precision.name}. If you stop it, the same command resumes it."
    )
    history = trainer.fit(train, val, max_epochs=_EPOCHS, checkpointer=Checkpointer(out), resume=True)
    history.save_csv(out / "history.csv")
    classifier = Classifier.load(out, device=args.device)
    selected = classifier.selected_by
    say(
        f"3. Best checkpoint: {out}/best.safetensors has the weights of epoch {selected['epoch']}, the best one on the "
        f"validation images ({selected['value']:.2%}), with preprocessing and class names."
    )
    evaluation = classifier.evaluate(data.test)
    say(f"4. Evaluation on {len(data.test):,} test images, which chose nothing: {evaluation}.")
    pictures = _save_pictures(out / "pictures")
    predictions = list(zip(map(str, pictures), classifier.predict(pictures, top_k=2), strict=True))
    say("5. Prediction of picture files of any size:")
    for picture, prediction in predictions:
        say(f"   {picture}: {prediction}")
    figures = [str(out / name) for name in save_figures(out, classifier, history, data.test)]
    say(f"6. Figures: {', '.join(figures)}.")
    document: dict[str, Any] = {"command": command, **evaluation.to_dict(), "figures": figures}
    document["predictions"] = [{"image": picture, **asdict(prediction)} for picture, prediction in predictions]
    return document, (
        "\nNext:\n"
        f"  {shlex.join(['cifarnet', 'predict', str(out), str(pictures[0])])}\n"
        "  cifarnet train --val-fraction 0.1     train on CIFAR-10; the first run downloads 170 MB\n"
        "  cifarnet train --help                 train on your photos, resume, choose a device"
    )


def _print(line: str) -> None:
    print(line, flush=True)


def _save_pictures(directory: Path) -> list[Path]:
    """Save three new images as files that are neither square nor 32 pixels wide."""
    directory.mkdir(parents=True, exist_ok=True)
    images = make_synthetic(1, 10, seed=1, size=240).test
    paths = []
    for index, height, width, suffix in ((0, 180, 240, "png"), (4, 240, 200, "jpg"), (8, 200, 230, "webp")):
        top, left = (240 - height) // 2, (240 - width) // 2
        pixels = images.images[index, :, top : top + height, left : left + width]
        paths.append(directory / f"{images.classes[index]}-{width}x{height}.{suffix}")
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(paths[-1])
    return paths
