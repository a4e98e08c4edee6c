"""Command line. Exit codes: 0 success, 2 wrong use, 1 any other failure, with one line per error on stderr."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cifarnet._console import write_line
from cifarnet._validation import did_you_mean, finite_json
from cifarnet.cli.arguments import build_parser
from cifarnet.errors import CifarnetError, SettingError

__all__ = ["main"]

#: What Ctrl-C prints, by command.
_HINTS = {"demo": "; the same command resumes the demo", "train": "; --resume continues a run that has started"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the name of the program; ``None`` uses those of the process.

    Returns:
        The exit code: 0, 1, 2, 130 after Ctrl-C, or 141 if a pipe was closed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        build_parser()[0].print_help(sys.stderr)
        return 2
    debug, command = False, ""
    try:
        args = _parse(arguments)
        debug, command = args.debug, args.command
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            document, text = _load(command)(args, shlex.join(["cifarnet", *arguments]))
    except SettingError as error:
        return _fail(error, 2, debug=debug)
    except (CifarnetError, OSError) as error:
        return _fail(error, 1, debug=debug)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop.__cause__, CifarnetError):  # of the step that the signal waited for
            _fail(stop.__cause__, 1, debug=False)
        if isinstance(stop, SystemExit):  # SIGTERM
            raise
        if not _rank():
            write_line(f"cifarnet: interrupted{_HINTS.get(command, '')}")
        return 130  # 128 + SIGINT, as in shells
    errors = document.get("errors", [])  # of single pictures
    for message in errors:
        write_line(f"cifarnet: error: {message}")
    if _rank():
        return 0
    printed = _print(json.dumps(finite_json(document), indent=1, allow_nan=False) if args.json else text)
    return printed or (1 if errors else 0)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments, and suggest the nearest command or option for a misspelt one."""
    parser, commands = build_parser()
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        raise SettingError(f"{arguments[0]} must come after a command: cifarnet COMMAND {arguments[0]} ...")
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command is not None and command not in commands:
        raise SettingError(f'unknown command "{command}"; {did_you_mean(command, commands)}')
    args, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        if word.startswith("-"):
            option = word.partition("=")[0]
            usage = args.parser.format_usage().replace("[", " ").replace("]", " ").split()
            raise SettingError(f"unknown option {option}; {did_you_mean(option, [w for w in usage if w[:2] == '--'])}")
    if unknown:
        raise SettingError(f"{shlex.join(unknown)}: one argument too many; {args.parser.prog} --help shows the usage")
    return args


def _load(command: str) -> Callable[[argparse.Namespace, str], tuple[dict[str, Any], str]]:
    """Import the function of a command. It returns a document, and the same as text."""
    name = f"cifarnet.cli.{'demo' if command == 'demo' else 'commands'}"
    if name not in sys.modules:
        gc.disable()  # passes over half a million objects of torch cost 0.4 s here and 0.4 s when the process ends
        try:
            importlib.import_module(name)
        finally:
            gc.freeze()
            gc.enable()
    return getattr(sys.modules[name], command)  # type: ignore[no-any-return]


def _print(text: str) -> int:
    """Print to stdout. Characters that it cannot show are escaped, and a closed pipe is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again when it ends
        return 141  # 128 + SIGPIPE
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    write_line(f"warning: {message}")


def _fail(error: BaseException, code: int, *, debug: bool) -> int:
    if _is_distributed():
        from cifarnet.training.distributed import do_not_wait

        do_not_wait()
    if debug:
        raise error
    name = f"cifarnet, rank {_rank()}" if _rank() else "cifarnet"
    write_line("\n".join([f"{name}: error: {error}", *getattr(error, "__notes__", [])]))
    return code


def _is_distributed() -> bool:
    """Return whether torchrun started several processes. torch may not be imported yet."""
    return os.environ.get("WORLD_SIZE", "") not in ("", "1")


def _rank() -> int:
    """Return the rank of this process. Rank 0 prints results; every rank prints its errors."""
    rank = os.environ.get("RANK", "") if _is_distributed() else ""
    return int(rank) if rank.isdecimal() else 0
