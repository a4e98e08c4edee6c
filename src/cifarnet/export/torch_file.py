"""A torch.export program (``.pt2``): for torch without the code of the network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cifarnet._files import check_target
from cifarnet._types import Images
from cifarnet.classifier import Classifier
from cifarnet.export.comparison import check_images
from cifarnet.export.exported import ExportedFile, describe, save_compared
from cifarnet.export.portable import float32_classifier, quiet_torch, temperature_of, trace

__all__ = ["ABOUT", "export_torch"]

#: The name under which the file holds what is to be known about it.
ABOUT = "cifarnet.json"


def export_torch(classifier: Classifier, path: str | Path, *, images: Images | None = None) -> ExportedFile:
    """Write a classifier as a program that `torch.export.load` reads without cifarnet.

    Takes uint8 images in ``[0, 255]``, shape ``(N, C, size, size)``, any ``N``; gives float32 probabilities, shape
    ``(N, K)``. The extra file ``cifarnet.json`` in it has the class names and more. Loaded again and compared with the
    library in float32 on the CPU before it is written; the same classifier gives the same bytes with the same torch.

    Reading such a file is not safe as reading a checkpoint is: torch unpickles what is in it, so that somebody else's
    ``.pt2`` can run code. Nor does torch promise that a newer one reads it.

    Args:
        classifier: Of any precision, on any device; not touched.
        path: Where the file goes, ending in ``.pt2``; an older one is replaced, whole or not at all.
        images: What to compare on, uint8 ``(N, C, size, size)``; ``None`` draws 72.

    Returns:
        Where it is, and how far it is from the library.

    Raises:
        ExportError: If the network cannot be exported, or the file would differ by more than `TOLERANCE`; no file is
            written.
        InputError: If ``images`` are not of that shape and dtype.
        NonFiniteLogitsError: If the network gives NaN or infinity.
        OSError: If the file cannot be written.
        SettingError: If the name ends otherwise, or its folder is not there.
    """
    target = check_target(path, ".pt2")
    if images is not None:
        check_images(images, classifier.preprocess)
    reference = float32_classifier(classifier)
    program = trace(reference, temperature=temperature_of(classifier))
    buffer = io.BytesIO()
    about = json.dumps(describe(classifier), indent=1, sort_keys=True)
    with quiet_torch():
        torch.export.save(program, buffer, extra_files={ABOUT: about})
    content = buffer.getvalue()
    return save_compared(content, target, _open, reference=reference, classifier=classifier, images=images)


def _open(content: bytes) -> Callable[[Images], Tensor]:
    """The program as a reader of the file gets it; these bytes are our own, and safe to read."""
    with quiet_torch():
        program = torch.export.load(io.BytesIO(content)).module()

    def run(images: Images) -> Tensor:
        with torch.no_grad():
            probabilities: Tensor = program(images)
        return probabilities

    return run
