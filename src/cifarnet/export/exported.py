"""From the bytes of a file to a file that was compared with the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import cifarnet
from cifarnet._files import write_atomic
from cifarnet._types import Images
from cifarnet.classifier import Classifier
from cifarnet.errors import ExportError
from cifarnet.export.comparison import TOLERANCE, draw_images, largest_difference
from cifarnet.export.portable import INPUT_NAME, OUTPUT_NAME, reason, temperature_of
from cifarnet.models import unwrapped
from cifarnet.training.history import finite_json

__all__ = ["ExportedFile", "describe", "save_compared"]


@dataclass(frozen=True)
class ExportedFile:
    """A file that was compared with the library before it was written.

    Args:
        path: Where it is.
        num_bytes: Its size.
        num_images: How many images it was compared on, in batches of 1, 2, 5 and more.
        difference: Largest difference of a probability from the library's in float32 on the CPU, at most `TOLERANCE`.
        difference_from_run: The same from the classifier as it was given: with bf16 that is what bf16 costs.
    """

    path: Path
    num_bytes: int
    num_images: int
    difference: float
    difference_from_run: float


def describe(classifier: Classifier) -> dict[str, Any]:
    """What a user of the file needs to know, as plain values.

    Args:
        classifier: What is exported.
    """
    preprocess = classifier.preprocess
    size = preprocess.size
    about = {
        "cifarnet": cifarnet.__version__,
        "classes": list(classifier.classes),
        "input": f"{INPUT_NAME}: uint8 in 0..255, shape (N, {len(preprocess.mean)}, {size}, {size})",
        "mean": list(preprocess.mean),
        "model": type(unwrapped(classifier.model)).__name__,
        "output": f"{OUTPUT_NAME}: float32, shape (N, K), in the order of the classes",
        "precision": "float32",
        "run_precision": classifier.precision.name,
        "selected_by": classifier.selected_by,
        "size": size,
        "std": list(preprocess.std),
        "temperature": temperature_of(classifier),
    }
    return {key: json.loads(json.dumps(finite_json(value))) for key, value in about.items()}


def save_compared(
    content: bytes,
    path: Path,
    open_file: Callable[[bytes], Callable[[Images], Tensor]],
    *,
    reference: Classifier,
    classifier: Classifier,
    images: Images | None,
) -> ExportedFile:
    """Compare a file with the library, and write it if it agrees.

    Args:
        content: The file.
        path: Where it goes; an older file there is replaced.
        open_file: Reads the content as somebody else would, and gives what it computes of a batch.
        reference: In float32 on the CPU.
        classifier: As it was given.
        images: To compare on; ``None`` draws some.

    Raises:
        ExportError: If it cannot be read, or differs by more than `TOLERANCE`; nothing is written.
        OSError: If it cannot be written.
    """
    if images is None:
        images = draw_images(reference.preprocess)
    temperature = temperature_of(classifier)
    try:
        run = open_file(content)
    except Exception as error:
        raise ExportError(f"{path.name} could not be read again, and was not written: {reason(error)}") from error
    difference = largest_difference(run, reference, images, temperature=temperature)
    if not difference <= TOLERANCE:  # NaN is not either
        raise ExportError(
            f"{path.name} would give probabilities up to {difference:.2g} from the library's, more than {TOLERANCE:g}, "
            "and was not written; a network that draws random numbers, or whose forward depends on values in Python, "
            "cannot be exported"
        )
    difference_from_run = difference
    if (classifier.precision.name, classifier.device.type) != ("float32", "cpu"):
        difference_from_run = largest_difference(run, classifier, images, temperature=temperature)
    write_atomic(path, content)
    return ExportedFile(path, len(content), len(images), difference, difference_from_run)
