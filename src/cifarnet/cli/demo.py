"""``cifarnet demo``: the whole way on drawn images, with a sentence at each step."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cifarnet._console import write_line
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.cli.figures import save_figures
from cifarnet.data import ImageDataset, make_synthetic
from cifarnet.inference import resolve_device
from cifarnet.models import CifarCNN
from cifarnet.optim import linear
from cifarnet.randomness import isolated, seed_torch
from cifarnet.training import Trainer
from cifarnet.transforms import build_transforms

__all__ = ["run_demo"]

_EPOCHS = 6


def run_demo(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Train, reload, evaluate, predict, draw."""
    out = args.out or Path("runs/demo")
    device = resolve_device(args.device)
    channel = sys.stderr if args.json else sys.stdout

    def say(sentence: str) -> None:
        if channel is sys.stderr:
            write_line(sentence)
        else:
            print(sentence, flush=True)

    data = make_synthetic()
    train, val = data.train.split(0.1, seed=0)
    say(
        f"1. Data: {len(data.train):,} images of shapes and textures, drawn just now; {len(val):,} of them are held "
        f"out to choose by. Classes: {', '.join(data.train.classes)}."
    )
    trainer = _build_trainer(device)
    say(
        f"2. Training: the published network, CifarCNN, with a quarter of its hidden units, {_EPOCHS} epochs on "
        f"{trainer.device} in {trainer.precision.name}. Killed on the way? The same command goes on."
    )
    history = trainer.fit(
        train,
        val,
        max_epochs=_EPOCHS,
        checkpointer=Checkpointer(out),
        resume=True,
    )
    history.save_csv(out / "history.csv")
    classifier = Classifier.load(out, device=device)
    say(
        f"3. Best checkpoint: {out}/best.safetensors has the weights of epoch {classifier.selected_by['epoch']}, the "
        f"best on the held-out images ({classifier.selected_by['value']:.2%} right), with preprocessing and class "
        "names. Loaded back, as another program would."
    )
    evaluation = classifier.evaluate(data.test)
    say(f"4. Evaluation on {len(data.test):,} test images, by which nothing was chosen: {evaluation}.")
    pictures = _save_pictures(out / "pictures")
    predictions = classifier.predict(pictures, top_k=2)
    say("5. Prediction for pictures in files, of any size:")
    for picture, prediction in zip(pictures, predictions, strict=True):
        say(f"   {picture}: {prediction}")
    figures = [str(out / name) for name in save_figures(out, classifier, history, data.test)]
    say(f"6. Figures to look at: {', '.join(figures)}.")
    document = {
        "command": command,
        **evaluation.to_dict(),
        "predictions": [{"image": str(p), **asdict(q)} for p, q in zip(pictures, predictions, strict=True)],
        "figures": figures,
    }
    return document, (
        "\nNow the real thing:\n"
        f"  {shlex.join(['cifarnet', 'predict', str(out), str(pictures[0])])}\n"
        "  cifarnet train --val-fraction 0.1     CIFAR-10: 170 MB are downloaded once, then the published run\n"
        "  cifarnet train --help                 your own photos, resuming, other devices"
    )


def _build_trainer(device: torch.device) -> Trainer:
    """What a user would write; smaller and with less dropout than the published run, as 4,500 images want it."""
    cpu = torch.device("cpu")
    with isolated(cpu):
        seed_torch(0, cpu)
        model = CifarCNN(hidden=128, dropout=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    return Trainer(model, optimizer, transforms=build_transforms(), lr_schedule=linear(), device=device, seed=0)


def _save_pictures(directory: Path) -> list[Path]:
    """Three images that no run has seen, as files that are neither square nor 32 pixels wide."""
    directory.mkdir(parents=True, exist_ok=True)
    data: ImageDataset = make_synthetic(1, 10, seed=1, size=240).test
    paths: list[Path] = []
    for index, (height, width), suffix in ((0, (180, 240), "png"), (4, (240, 200), "jpg"), (8, (200, 230), "webp")):
        path = directory / f"{data.classes[index]}-{width}x{height}.{suffix}"
        top, left = (240 - height) // 2, (240 - width) // 2
        pixels = data.images[index, :, top : top + height, left : left + width]
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    return paths
