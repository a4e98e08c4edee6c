"""Commands are imported when they are called: torch takes seconds, and help and wrong use need none of it."""

from __future__ import annotations

import argparse
import gc
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

__all__ = ["interruptible", "load_command", "uncollected"]

#: Arguments and the command line itself to a document and text.
Command: TypeAlias = Callable[[argparse.Namespace, str], tuple[dict[str, Any], str]]


def load_command(name: str) -> Command:
    """Import what a command does.

    Args:
        name: ``"module:function"``, of this package.

    Returns:
        The function; it gives a document, and the same as text.
    """
    file, _, function = name.partition(":")
    module = f"cifarnet.cli.{file}"
    if module not in sys.modules:
        with interruptible(), uncollected():
            importlib.import_module(module)
    return cast("Command", getattr(sys.modules[module], function))


@contextmanager
def interruptible() -> Iterator[None]:
    """A Ctrl-C within the block ends it with `KeyboardInterrupt`, at the latest at its end.

    While torch imports NumPy, it takes whatever is raised for a missing NumPy, and goes on without.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else's to handle
        return
    caught = False

    def interrupt(*_: object) -> None:
        nonlocal caught
        caught = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:
        if not caught:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt


@contextmanager
def uncollected() -> Iterator[None]:
    """What the block makes lives to the end of the process: Python need not look for garbage in it.

    The half million objects of torch and torchvision cost 0.4 s of that while they are imported, and as much when the
    process ends.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
