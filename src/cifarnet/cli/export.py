"""``export``: a run's best weights as a file for elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cifarnet._choices import EXPORT_FORMATS
from cifarnet._validation import check_choice
from cifarnet.classifier import Classifier
from cifarnet.export import TOLERANCE, ExportedFile, export_onnx, export_torch

__all__ = ["export"]

_WRITERS: dict[str, tuple[Callable[[Classifier, Path], ExportedFile], str]] = {
    "onnx": (export_onnx, "model.onnx"),
    "torch": (export_torch, "model.pt2"),
}

_WARNINGS = {"torch": "\nto read a .pt2 can run code: load only those of people you trust"}


def export(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Write the file, and tell how far it is from the library."""
    check_choice("--format", args.format, EXPORT_FORMATS)
    write, name = _WRITERS[args.format]
    classifier = Classifier.load(args.path, device="cpu")
    directory = args.path if args.path.is_dir() else args.path.parent
    exported = write(classifier, args.out or directory / name)
    run_precision = classifier.precision.name
    document: dict[str, Any] = {
        "command": command,
        "run": str(args.path),
        "format": args.format,
        **asdict(exported),
        "path": str(exported.path),
        "tolerance": TOLERANCE,
        "precision": "float32",
        "run_precision": run_precision,
    }
    channels, size = len(classifier.preprocess.mean), classifier.preprocess.size
    lines = [
        f"{exported.path}: {exported.num_bytes / 1e6:.1f} MB, uint8 images (N, {channels}, {size}, {size}) to "
        "probabilities, in float32",
        f"largest difference from the library: {exported.difference:.1e}, over {exported.num_images} images",
    ]
    if run_precision != "float32":
        lines.append(f"from the library in {run_precision}, the run's own: {exported.difference_from_run:.1e}")
    return document, "\n".join(lines) + _WARNINGS.get(args.format, "")
