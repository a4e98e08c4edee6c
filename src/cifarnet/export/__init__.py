"""Export of a classifier as ONNX or ``torch.export`` file: preprocessing and network in one graph.

The file takes uint8 images, returns probabilities, and computes in float32. Before it is written, its output is
compared with the library in float32 on the CPU. A file that differs by more than `TOLERANCE` is not written.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import cifarnet
from cifarnet._files import check_target, write_atomic
from cifarnet._types import Images
from cifarnet._validation import finite_json
from cifarnet.classifier import Classifier
from cifarnet.errors import CifarnetError, DataError
from cifarnet.export.verification import draw_images, largest_difference, reason
from cifarnet.models._modules import unwrapped

if TYPE_CHECKING:
    import onnx

__all__ = ["TOLERANCE", "ExportedFile", "export_onnx", "export_torch"]

#: Largest accepted difference of a probability from the library. 1e-6 is usual, an error in the graph is above 0.01.
TOLERANCE = 1e-4

_OPSET = 18  # of December 2022, the oldest that the exporter of torch writes
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_INPUT, _OUTPUT = "images", "probabilities"
_METADATA = "cifarnet.json"  # name of the extra file in a .pt2


@dataclass(frozen=True)
class ExportedFile:
    """File that was compared with the library before it was written.

    Args:
        path: Path of the file.
        num_bytes: Size of the file.
        num_images: Number of images in the comparison.
        difference: Largest difference of a probability from the library in float32 on the CPU, at most `TOLERANCE`.
        difference_from_run: Largest difference from the classifier in its own precision, on its own device.
    """

    path: Path
    num_bytes: int
    num_images: int
    difference: float
    difference_from_run: float


def export_onnx(classifier: Classifier, path: str | Path, *, images: Images | None = None) -> ExportedFile:
    """Write a classifier as an ONNX file.

    Input ``images``: uint8 in ``[0, 255]``, shape ``(N, C, size, size)``, any ``N``. Output ``probabilities``: float32,
    shape ``(N, K)``. The metadata contain the class names and more, each value as JSON. The same classifier gives the
    same bytes.

    Args:
        classifier: Classifier of any precision, on any device. It is not changed.
        path: Target, ending in ``.onnx``. An older file is replaced, as a whole or not at all.
        images: Images for the comparison, uint8 ``(N, C, size, size)``. By default 72 random ones.

    Returns:
        Path and size of the file, and its difference from the library.

    Raises:
        CifarnetError: If the network cannot be exported, the file would differ by more than `TOLERANCE`, or onnx,
            onnxruntime or onnxscript is not installed. No file is written.
        DataError: If ``images`` have another shape or dtype.
        NonFiniteError: If the network gives NaN or infinity.
        OSError: If the file cannot be written.
        SettingError: If the name ends otherwise, or its folder does not exist.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise CifarnetError(f'ONNX export needs {", ".join(missing)}. Install it with: pip install "cifarnet[onnx]"')
    return _export(classifier, check_target(path, ".onnx"), images, _to_onnx, _open_onnx)


def export_torch(classifier: Classifier, path: str | Path, *, images: Images | None = None) -> ExportedFile:
    """Write a classifier as a program that `torch.export.load` reads without cifarnet.

    Input: uint8 images in ``[0, 255]``, shape ``(N, C, size, size)``, any ``N``. Output: float32 probabilities, shape
    ``(N, K)``. Its extra file ``cifarnet.json`` contains the class names and more. The same classifier gives the same
    bytes with the same torch.

    Reading a ``.pt2`` is not as safe as reading a checkpoint: torch unpickles it, so it can run code. Nor does torch
    promise that a newer version reads it.

    Args:
        classifier: Classifier of any precision, on any device. It is not changed.
        path: Target, ending in ``.pt2``. An older file is replaced, as a whole or not at all.
        images: Images for the comparison, uint8 ``(N, C, size, size)``. By default 72 random ones.

    Returns:
        Path and size of the file, and its difference from the library.

    Raises:
        CifarnetError: If the network cannot be exported, or the file would differ by more than `TOLERANCE`. No file is
            written.
        DataError: If ``images`` have another shape or dtype.
        NonFiniteError: If the network gives NaN or infinity.
        OSError: If the file cannot be written.
        SettingError: If the name ends otherwise, or its folder does not exist.
    """
    return _export(classifier, check_target(path, ".pt2"), images, _to_pt2, _open_pt2)


def _export(
    classifier: Classifier,
    target: Path,
    images: Images | None,
    convert: Callable[[torch.export.ExportedProgram, dict[str, Any]], bytes],
    open_file: Callable[[bytes], Callable[[Images], Tensor]],
) -> ExportedFile:
    """Trace, convert, compare, write."""
    preprocess, model = classifier.preprocess, copy.deepcopy(unwrapped(classifier.model))
    shape = (len(preprocess.mean), preprocess.size, preprocess.size)
    images = draw_images(shape) if images is None else images
    if images.dtype != torch.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"expected uint8 images of shape (N, {', '.join(map(str, shape))}), got {images.dtype} "
            f"{tuple(images.shape)}; resize them first, for example by Classifier.to_pixels"
        )
    reference = Classifier(model, preprocess, classifier.classes, device="cpu", precision="float32")
    reference.temperature = classifier.temperature
    try:
        with _quiet_torch():
            content = convert(_trace(reference, torch.zeros(2, *shape, dtype=torch.uint8)), _describe(classifier))
            run = open_file(content)
    except Exception as error:
        raise CifarnetError(
            f"{type(model).__name__} cannot be exported: {reason(error)}; its forward must be tensor operations "
            "that suit any number of images, without Python's if on values"
        ) from error
    difference = difference_from_run = largest_difference(run, reference, images)
    if not difference <= TOLERANCE:  # also refuses NaN
        raise CifarnetError(
            f"{target.name} would give probabilities up to {difference:.2g} from the library's, more than "
            f"{TOLERANCE:g}, and was not written; forward must not draw random numbers or depend on values in Python"
        )
    if (classifier.precision.name, classifier.device.type) != ("float32", "cpu"):
        difference_from_run = largest_difference(run, classifier, images)
    write_atomic(target, content)
    return ExportedFile(target, len(content), len(images), difference, difference_from_run)


class _Network(nn.Module):
    """Preprocessing, network and softmax in evaluation mode, in float32 on the CPU."""

    def __init__(self, classifier: Classifier, example: Images) -> None:
        super().__init__()
        # Contiguous, because a program keeps strides, and other runtimes order them differently.
        self.model = copy.deepcopy(classifier.model).to(memory_format=torch.contiguous_format)
        self.model.requires_grad_(False)  # or models._modules flattens with an autograd function
        self.preprocess = classifier.preprocess
        self.temperature = classifier.temperature
        self.eval()
        self.preprocess(example)  # caches its constants, which would be fake tensors if made while tracing

    def forward(self, images: Images) -> Tensor:
        logits: Tensor = self.model(self.preprocess(images))
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.softmax(dim=1)


def _trace(reference: Classifier, example: Images) -> torch.export.ExportedProgram:
    """Record the computation for any batch size, without the example and the paths of source files."""
    batch: Any = torch.export.Dim("batch")
    program = torch.export.export(
        _Network(reference, example), (example,), dynamic_shapes={_INPUT: {0: batch}}, strict=False
    )
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _describe(classifier: Classifier) -> dict[str, Any]:
    """Return the metadata of the file as plain values."""
    preprocess, size = classifier.preprocess, classifier.preprocess.size
    values = {
        "cifarnet": cifarnet.__version__,
        "classes": list(classifier.classes),
        "input": f"{_INPUT}: uint8 in 0..255, shape (N, {len(preprocess.mean)}, {size}, {size})",
        "mean": list(preprocess.mean),
        "model": type(unwrapped(classifier.model)).__name__,
        "output": f"{_OUTPUT}: float32, shape (N, K), in the order of the classes",
        "precision": "float32",
        "run_precision": classifier.precision.name,
        "selected_by": classifier.selected_by,
        "size": size,
        "std": list(preprocess.std),
        "temperature": classifier.temperature,
    }
    return dict(finite_json(values))


def _to_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    from onnx import checker, helper

    with redirect_stdout(io.StringIO()):  # onnxscript 0.6 prints
        converted = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes={_INPUT: {0: "batch"}},
        )
    assert converted is not None
    proto: onnx.ModelProto = converted.model_proto
    graph = proto.graph
    graph.ClearField("metadata_props")
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
        item.ClearField("metadata_props")  # of torch, with paths; old runtimes do not support it
        item.ClearField("doc_string")
    graph.name = metadata["model"]
    proto.producer_name, proto.producer_version = "cifarnet", metadata["cifarnet"]
    proto.doc_string = f"{metadata['input']} to {metadata['output']}"
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)  # for old runtimes
    helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _open_onnx(content: bytes) -> Callable[[Images], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need not be on stderr too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([_OUTPUT], {_INPUT: images.numpy()})[0])


def _to_pt2(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    text = json.dumps(metadata, indent=1, sort_keys=True)
    torch.export.save(program, buffer, extra_files={_METADATA: text})
    return buffer.getvalue()


def _open_pt2(content: bytes) -> Callable[[Images], Tensor]:
    program: Callable[[Images], Tensor] = torch.export.load(io.BytesIO(content)).module()  # own bytes are safe
    return program


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Hide warnings of torch about its own code."""
    log = logging.getLogger("torch.onnx._internal.exporter._schemas")
    level = log.level
    log.setLevel(logging.ERROR)  # torch 2.10, about two operators of torchvision
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            yield
    finally:
        log.setLevel(level)
