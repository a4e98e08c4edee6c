"""Every public name of the package with its signature, read from the package itself.

python tests/docs/public_api.py > tests/docs/public_api.txt      # after a change that is meant
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import cifarnet

#: The modules whose ``__all__`` is public.
MODULES = ("cifarnet", *(f"cifarnet.{name}" for name in sorted(cifarnet._NAMES)))


def public_names() -> dict[str, Any]:
    """Every name of every ``__all__``, by its whole path, shortest paths first."""
    return {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module in MODULES
        for name in importlib.import_module(module).__all__
    }


def is_ours(value: object) -> bool:
    return isinstance(value, type) or (inspect.isfunction(value) and value.__module__.startswith("cifarnet"))


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods, properties and class attributes that a class, or a base of it of ours, defines."""
    seen = {"__init__"}
    for base in cls.__mro__:
        if not base.__module__.startswith("cifarnet"):
            continue
        for name, value in vars(base).items():
            if not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, value


def callables() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Every public function, constructor and method, once: its path, the function, and the docstring with its Args.

    Without methods that another library's base class declares, and explains, such as ``v2.Transform.make_params``.
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
        for name, member in members(value):
            function = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
            foreign = (base for base in value.__mro__ if not base.__module__.startswith("cifarnet"))
            if inspect.isfunction(function) and not any(name in vars(base) for base in foreign):
                yield f"{path}.{name}", function, inspect.getdoc(getattr(value, name)) or inspect.getdoc(function) or ""


def snapshot() -> str:
    """A line a name; whoever changes one changes it for users."""
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
    for name, member in sorted(members(value)):
        kind = type(member).__name__
        function = getattr(member, "__func__", member)
        if isinstance(member, property | cached_property):
            getter = member.fget if isinstance(member, property) else member.func
            yield f"{path}.{name} -> {_text(inspect.signature(getter).return_annotation)}"  # type: ignore[arg-type]
        elif inspect.isfunction(function):
            yield f"{path}.{name}{_signature(function)}" + ("" if kind == "function" else f"  # {kind}")


def _signature(function: Callable[..., Any]) -> str:
    """As in the source: annotations are strings there, which Python 3.11 to 3.14 give alike."""
    signature = inspect.signature(function)
    parts, kinds = [], [parameter.kind for parameter in signature.parameters.values()]
    for index, parameter in enumerate(signature.parameters.values()):
        stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        if parameter.kind is parameter.KEYWORD_ONLY and (
            not index or kinds[index - 1] not in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        ):
            parts.append("*")
        text = stars + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_text(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            plain = isinstance(parameter.default, bool | int | float | str | tuple | None)
            text += f" = {parameter.default!r}" if plain else " = ..."
        parts.append(text)
        last_positional = kinds[index + 1 : index + 2] != [parameter.POSITIONAL_ONLY]
        if parameter.kind is parameter.POSITIONAL_ONLY and last_positional:
            parts.append("/")
    end = "" if signature.return_annotation is signature.empty else f" -> {_text(signature.return_annotation)}"
    return f"({', '.join(parts)}){end}"


def _text(annotation: Any) -> str:
    annotation = getattr(annotation, "__forward_arg__", annotation)
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


if __name__ == "__main__":
    sys.stdout.write(snapshot())
