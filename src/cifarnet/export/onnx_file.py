"""ONNX: one file that many runtimes read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnet._files import check_target
from cifarnet._types import Images
from cifarnet.classifier import Classifier
from cifarnet.errors import ExportError, MissingPackageError
from cifarnet.export.comparison import check_images
from cifarnet.export.exported import ExportedFile, describe, save_compared
from cifarnet.export.portable import (
    INPUT_NAME,
    OUTPUT_NAME,
    float32_classifier,
    quiet_torch,
    reason,
    temperature_of,
    trace,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "export_onnx"]

#: Version of ONNX's operators, of December 2022: the oldest that torch's exporter writes, so that old runtimes read it.
OPSET = 18

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export_onnx(classifier: Classifier, path: str | Path, *, images: Images | None = None) -> ExportedFile:
    """Write a classifier as an ONNX file that needs nothing but a runtime.

    Input ``images``: uint8 in ``[0, 255]``, shape ``(N, C, size, size)``, any ``N``. Output ``probabilities``: float32,
    shape ``(N, K)``. The file's metadata have the class names and more, each value as JSON. Compared in onnxruntime
    with the library in float32 on the CPU before it is written; the same classifier gives the same bytes.

    Args:
        classifier: Of any precision, on any device; not touched.
        path: Where the file goes, ending in ``.onnx``; an older one is replaced, whole or not at all.
        images: What to compare on, uint8 ``(N, C, size, size)``; ``None`` draws 72.

    Returns:
        Where it is, and how far it is from the library.

    Raises:
        ExportError: If the network cannot be exported, or the file would differ by more than `TOLERANCE`; no file is
            written.
        InputError: If ``images`` are not of that shape and dtype.
        MissingPackageError: If onnx, onnxruntime or onnxscript is not installed.
        NonFiniteLogitsError: If the network gives NaN or infinity.
        OSError: If the file cannot be written.
        SettingError: If the name ends otherwise, or its folder is not there.
    """
    _check_packages()
    target = check_target(path, ".onnx")
    if images is not None:
        check_images(images, classifier.preprocess)
    reference = float32_classifier(classifier)
    content = _to_onnx(trace(reference, temperature=temperature_of(classifier)), describe(classifier))
    return save_compared(content, target, _open, reference=reference, classifier=classifier, images=images)


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"writing ONNX needs {', '.join(_PACKAGES)}, and {', '.join(missing)} "
            f'{"is" if len(missing) == 1 else "are"} not installed; pip install "cifarnet[onnx]"'
        )


def _to_onnx(program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    from onnx import checker

    try:
        with quiet_torch(), redirect_stdout(io.StringIO()):  # onnxscript 0.6 prints how much it has rewritten
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={INPUT_NAME: {0: "batch"}},
            )
        assert converted is not None
        proto: onnx.ModelProto = converted.model_proto
        _describe(proto, about)
        checker.check_model(proto, full_check=True)
        content: bytes = proto.SerializeToString(deterministic=True)
    except Exception as error:
        raise ExportError(
            f"{about['model']} cannot be written as ONNX: {reason(error)}; the format torch may take it"
        ) from error
    return content


def _describe(proto: onnx.ModelProto, about: dict[str, Any]) -> None:
    """Say what the file is, instead of how torch came to it."""
    from onnx import helper

    _forget_origin(proto.graph)
    for function in proto.functions:
        _forget_origin(function)
    proto.graph.name = about["model"]
    proto.producer_name, proto.producer_version = "cifarnet", about["cifarnet"]
    proto.doc_string = f"{about['input']} to {about['output']}"
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)  # the oldest that has these operators
    helper.set_model_props(proto, {key: json.dumps(value) for key, value in about.items()})


def _forget_origin(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Take out what torch notes of each value and node, for which files of this age have no place."""
    graph.ClearField("metadata_props")
    for name in ("input", "output", "value_info", "initializer", "node"):
        for item in getattr(graph, name, ()):
            if not isinstance(item, str):  # the inputs of a function are names
                item.ClearField("metadata_props")
                item.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _forget_origin(inner)


def _open(content: bytes) -> Callable[[Images], Tensor]:
    """The file as onnxruntime runs it on a CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and need not be on stderr too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> Tensor:
        (probabilities,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
        return torch.from_numpy(probabilities)

    return run
