"""How the field names what a module or a function does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

__all__ = ["SILENT", "Family", "call_key", "describe", "describe_module", "field_name", "name_arguments"]

#: What kind of work a row of a summary does: ``"block"`` stands for rows folded into one.
Family: TypeAlias = Literal["convolution", "linear", "norm", "pooling", "other", "block"]

#: How the field says it. A module and the function of the same name share a key, see `call_key`.
_WORDS: dict[Family, dict[str, str]] = {
    "convolution": {"conv": "conv", "convtranspose": "transposed conv"},
    "linear": {"linear": "linear", "bilinear": "bilinear"},
    "norm": {
        "batchnorm": "batch norm", "syncbatchnorm": "batch norm", "layernorm": "layer norm", "rmsnorm": "RMS norm",
        "groupnorm": "group norm", "instancenorm": "instance norm", "localresponsenorm": "local response norm",
    },
    "pooling": {
        "maxpool": "max-pool", "avgpool": "avg-pool", "adaptivemaxpool": "max-pool", "adaptiveavgpool": "avg-pool",
        "mean": "mean", "amax": "max",
    },
    "other": {name.lower(): name for name in nn.modules.activation.__all__} | {
        "softmax": "softmax", "logsoftmax": "log-softmax", "sigmoid": "sigmoid", "tanh": "tanh",
        "multiheadattention": "attention", "multiheadattentionforward": "attention",
        "scaleddotproductattention": "attention",
        "dropout": "dropout", "alphadropout": "alpha dropout", "featurealphadropout": "alpha dropout",
        "flatten": "flatten", "ravel": "flatten", "unflatten": "reshape", "reshape": "reshape", "view": "reshape",
        "permute": "permute", "transpose": "permute", "movedim": "permute", "getitem": "slice", "pad": "pad",
        "cat": "concatenate", "concat": "concatenate", "chunk": "split", "identity": "identity",
        "add": "add", "radd": "add", "iadd": "add", "sub": "subtract", "rsub": "subtract", "mul": "multiply",
        "rmul": "multiply", "imul": "multiply", "div": "divide", "truediv": "divide", "rdiv": "divide", "neg": "negate",
        "matmul": "matrix product", "bmm": "matrix product", "mm": "matrix product", "interpolate": "upsample",
    },
}  # fmt: skip
_KINDS: dict[str, tuple[str, Family]] = {
    key: (words, family) for family, table in _WORDS.items() for key, words in table.items()
}
#: Calls that neither compute nor reshape.
SILENT = {"get", "to", "type", "typeas", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach"}
SILENT |= {"cpu", "cuda", "alias", "positive", "requiresgrad"}


def call_key(name: str) -> tuple[str, int]:
    """What module and function have in common, and in how many dimensions: ``MaxPool2d``, ``max_pool2d``."""
    key = name.partition(".")[0].replace("_", "").lower()
    match = re.fullmatch(r"(.+?)([123])d", key)
    return (match[1], int(match[2])) if match else (key, 0)


def name_arguments(name: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments of a function by the names that modules have for them."""
    names = {
        "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        "convtranspose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        "dropout": ("input", "p"),
    }.get(call_key(name)[0], ("input", "kernel_size"))
    return dict(zip(names, args, strict=False))


def field_name(module: nn.Module) -> str | None:
    """The nearest class of torch that the field has words for; a user's own class may only share its name."""
    if isinstance(module, nn.Sequential) and not len(module):
        return "Identity"
    bases = [base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn.")]
    return next((name for name in bases if call_key(name)[0] in _KINDS), None)


def describe_module(module: nn.Module, before: Tensor | None, after: Tensor | None) -> tuple[str, str, Family]:
    """Kind, detail and family of a module; its class where the field has no name for it."""
    name = field_name(module)
    return describe(name, vars(module), before, after) if name else (type(module).__name__, "", "other")


def describe(
    name: str, settings: Mapping[str, Any], before: Tensor | None, after: Tensor | None
) -> tuple[str, str, Family]:
    """Kind, detail and family of a module of torch or of a function."""
    key, dimensions = call_key(name)
    words, family = _KINDS.get(key, (name.partition(".")[0].strip("_").replace("_", " "), "other"))
    if before is None or after is None:
        return words, "", family
    if family == "convolution":
        return _describe_convolution(words, settings, before, after)
    if family == "linear":
        return words, f"{before.shape[-1]:,} -> {after.shape[-1]:,}", family
    if family == "pooling":
        words = _describe_pooling(key, words, _sizes(settings.get("kernel_size"), dimensions), before, after)
    elif words.endswith("dropout"):
        words += f" {settings.get('p', 0.5):g}"
    return words, "", family


def _describe_convolution(
    words: str, settings: Mapping[str, Any], before: Tensor, after: Tensor
) -> tuple[str, str, Family]:
    kernel, groups = settings.get("kernel_size", settings.get("weight")), settings.get("groups", 1)
    sizes = tuple(kernel.shape[2:]) if isinstance(kernel, Tensor) else kernel  # a function is given the weights
    if groups > 1:
        words = f"depthwise {words}" if groups == before.shape[1] else f"grouped {words}"
    detail = f"{before.shape[1]:,} -> {after.shape[1]:,}"
    strides = _sizes(settings.get("stride", 1), 1)
    if set(strides) != {"1"}:
        detail += f", stride {strides[0] if len(set(strides)) == 1 else 'x'.join(strides)}"
    return f"{words} {'x'.join(_sizes(sizes, after.ndim - 2))}", detail, "convolution"


def _describe_pooling(key: str, words: str, kernel: list[str], before: Tensor, after: Tensor) -> str:
    kept = before.shape[:2]  # (N, C)
    over_pixels = before.ndim == 4 and after.shape[:2] == kept and after.numel() == kept.numel()
    if key in ("mean", "amax"):
        return f"{words} over pixels" if over_pixels else words
    if key.startswith("adaptive"):
        return f"global {words}" if over_pixels else f"adaptive {words} {'x'.join(map(str, after.shape[2:]))}"
    return f"{words} {'x'.join(kernel)}"


def _sizes(size: Any, dimensions: int) -> list[str]:
    """One size for all dimensions, or one for each."""
    if isinstance(size, tuple | list):
        return [str(each) for each in size]
    return [str(size)] * dimensions
