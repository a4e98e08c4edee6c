"""List of every public name of the package with its signature.

python tests/docs/public_api.py > tests/docs/public_api.txt      # after an intended change
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import cifarnet

#: The modules whose ``__all__`` is public.
MODULES = ("cifarnet", *(f"cifarnet.{name}" for name in sorted(cifarnet._NAMES)))


def public_names() -> dict[str, Any]:
    """Return every name of every ``__all__`` by its whole path, shortest paths first."""
    return {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module in MODULES
        for name in importlib.import_module(module).__all__
    }


def is_ours(value: object) -> bool:
    return isinstance(value, type) or (inspect.isfunction(value) and value.__module__.startswith("cifarnet"))


def members(cls: type) -> dict[str, Any]:
    """Return public methods, properties and class attributes that a class or a base class of ours defines."""
    ours = [base for base in reversed(cls.__mro__) if base.__module__.startswith("cifarnet")]
    return {name: value for base in ours for name, value in vars(base).items() if not name.startswith("_")}


def function_of(member: Any) -> Any:
    """Return the function below a method or a property."""
    return getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))


def callables() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield every public function, constructor and method once, with its path and the docstring of its arguments.

    Methods that a base class of another library declares, such as ``v2.Transform.make_params``, are left out.
    """
    seen = set()
    for path, value in public_names().items():
        if not is_ours(value) or id(value) in seen:
            continue
        seen.add(id(value))
        if not isinstance(value, type):
            yield path, value, inspect.getdoc(value) or ""
            continue
        constructor = getattr(value, "__init__")  # noqa: B009  # of a type, as mypy warns of instances
        if inspect.isfunction(constructor) and constructor.__module__.startswith("cifarnet"):
            yield path, constructor, inspect.getdoc(value) or ""
        for name, member in members(value).items():
            function = function_of(member)
            foreign = (base for base in value.__mro__ if not base.__module__.startswith("cifarnet"))
            if inspect.isfunction(function) and not any(name in vars(base) for base in foreign):
                yield f"{path}.{name}", function, inspect.getdoc(getattr(value, name)) or inspect.getdoc(function) or ""


def snapshot() -> str:
    """Return one line per name. A changed line is a change for users."""
    lines, first_paths = [], dict[int, str]()
    for path, value in public_names().items():
        first = first_paths.setdefault(id(value), path) if is_ours(value) else path
        lines += [f"{path} = {first}"] if first != path else list(_describe(path, value))
    return "\n".join(lines) + "\n"


def _describe(path: str, value: Any) -> Iterator[str]:
    if not is_ours(value):
        kind = type(value).__name__ if isinstance(value, int | float | str | tuple | Mapping) else "alias of a type"
        yield f"{path}: {kind}" + (f" = {value!r}" if isinstance(value, int | float | str) else "")
        return
    if not isinstance(value, type):
        yield f"{path}{_signature(value)}"
        return
    if issubclass(value, Exception):
        yield f"{path}({', '.join(base.__name__ for base in value.__bases__)})"
    elif getattr(value, "_is_protocol", False):
        yield f"{path}: Protocol"
    else:
        yield f"{path}{_signature(value)}"
    if is_dataclass(value):
        yield f"{path}: fields {', '.join(field.name for field in fields(value))}"
    for name, member in sorted(members(value).items()):
        function, kind = function_of(member), type(member).__name__
        if isinstance(member, property | cached_property):
            yield f"{path}.{name}{_signature(function).removeprefix('(self)')}"
        elif inspect.isfunction(function):
            yield f"{path}.{name}{_signature(function)}" + ("" if kind == "function" else f"  # {kind}")


def _signature(function: Callable[..., Any]) -> str:
    """Return the signature as in the source, where annotations have no quotes."""
    text = re.sub(r"""(: |-> )(['"])(.*?)\2(?=, |\)| = |$)""", r"\1\3", str(inspect.signature(function)))
    return re.sub(r"= <.*?>", "= ...", text)


if __name__ == "__main__":
    sys.stdout.write(snapshot())
