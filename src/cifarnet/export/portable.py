"""The network of an exported file: uint8 images in, probabilities out, nothing of the library in its graph."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet._types import Images, Logits
from cifarnet.classifier import Classifier
from cifarnet.errors import ExportError
from cifarnet.models import unwrapped
from cifarnet.transforms import Preprocess

__all__ = [
    "INPUT_NAME",
    "OUTPUT_NAME",
    "PortableNetwork",
    "float32_classifier",
    "quiet_torch",
    "reason",
    "temperature_of",
    "trace",
]

#: What the input and the output of every exported file are called.
INPUT_NAME, OUTPUT_NAME = "images", "probabilities"


def temperature_of(classifier: Classifier) -> float:
    """What its logits are divided by before they become probabilities; a calibrated classifier has its own.

    Args:
        classifier: Any.
    """
    return classifier.temperature


def float32_classifier(classifier: Classifier) -> Classifier:
    """A copy that computes in float32 on the CPU: what an exported file is compared with.

    Args:
        classifier: Of any precision, on any device; not touched.
    """
    return Classifier(
        copy.deepcopy(unwrapped(classifier.model)),
        classifier.preprocess,
        classifier.classes,
        device="cpu",
        precision="float32",
    )


class PortableNetwork(nn.Module):
    """Preprocessing, network and softmax as one module, in evaluation mode.

    Args:
        model: float32 on the CPU.
        preprocess: What the network needs.
        temperature: Divides the logits, above 0.
    """

    def __init__(self, model: nn.Module, preprocess: Preprocess, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)  # else `flatten` would use an autograd function
        self.preprocess = preprocess
        self.temperature = temperature
        self.eval()
        # Its constants are made at the first call and kept: made while tracing, they would be fakes for everybody.
        self.preprocess(self.example(1))

    def example(self, num_images: int) -> Images:
        """Black images of the network's size, shape ``(num_images, C, size, size)``."""
        channels, size = len(self.preprocess.mean), self.preprocess.size
        return torch.zeros(num_images, channels, size, size, dtype=torch.uint8)

    def forward(self, images: Images) -> Tensor:
        """uint8 ``(N, C, size, size)`` to probabilities ``(N, K)``."""
        logits: Logits = self.model(self.preprocess(images))
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.softmax(dim=1)


def trace(reference: Classifier, *, temperature: float = 1.0) -> torch.export.ExportedProgram:
    """Record what a classifier computes, for batches of any size.

    Args:
        reference: As `float32_classifier` gives it.
        temperature: See `temperature_of`.

    Returns:
        The program, without anything of the machine that it was recorded on.

    Raises:
        ExportError: If the network does what cannot be recorded.
    """
    # Contiguous: a program keeps strides, and a foreign runtime has its own idea of them.
    model = copy.deepcopy(reference.model).to(memory_format=torch.contiguous_format)
    network = PortableNetwork(model, reference.preprocess, temperature)
    batch: Any = torch.export.Dim("batch")
    try:
        # Two images, as torch takes a batch of one for a constant.
        with quiet_torch():
            program = torch.export.export(
                network, (network.example(2),), dynamic_shapes={INPUT_NAME: {0: batch}}, strict=False
            )
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be exported: {reason(error)}; its forward must be tensor operations "
            "that suit any number of images, without Python's if on values"
        ) from error
    _forget_origin(program)
    return program


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Within the block torch does not tell users what only torch's authors can mend."""
    log = logging.getLogger("torch.onnx._internal.exporter._schemas")
    level = log.level
    log.setLevel(logging.ERROR)  # torch 2.10 of two operators of torchvision
    try:
        with warnings.catch_warnings():
            # torch 2.10 of its own copying, and its own reading, of programs
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            yield
    finally:
        log.setLevel(level)


def reason(error: BaseException) -> str:
    """What an error of torch comes down to, in a line.

    Args:
        error: Perhaps with pages of text, or raised from others.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _forget_origin(program: torch.export.ExportedProgram) -> None:
    """Take out the example, and the paths of source files: equal networks give equal files wherever they are made."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
