"""The command line: arguments in, text or one JSON document out, an exit code.

0 is success, 2 wrong use, 1 any other failure, told in one line; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cifarnet._console import write_line
from cifarnet._validation import did_you_mean, finite_json
from cifarnet.cli.arguments import BENCHMARKS, build_parser
from cifarnet.cli.imports import load_command
from cifarnet.errors import CifarnetError, SettingError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes the process's own.

    Returns:
        The exit code: 0, 1, 2, 130 after Ctrl-C, or 141 where a pipe was closed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        build_parser()[0].print_help(sys.stderr)
        return 2
    debug, interrupted = False, ""
    try:
        args = _parse(arguments)
        debug, interrupted = args.debug, args.interrupted
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # one line on stderr, without the source
            document, text = load_command(args.run)(args, shlex.join(["cifarnet", *arguments]))
    except SettingError as error:
        return _fail(error, 2, debug=debug)
    except (CifarnetError, OSError) as error:
        return _fail(error, 1, debug=debug)
    except KeyboardInterrupt as error:
        _tell_cause(error)
        if not _rank():
            write_line(f"cifarnet: interrupted{interrupted}")
        return 130  # 128 + SIGINT, as shells count
    except SystemExit as error:  # SIGTERM
        _tell_cause(error)
        raise
    errors = document.get("errors", [])  # of parts of the work, which did not cost the rest
    for message in errors:
        write_line(f"cifarnet: error: {message}")
    if _rank():
        return 0
    printed = _print(json.dumps(finite_json(document), indent=1, allow_nan=False) if args.json else text)
    return printed or (1 if errors else 0)


def _print(text: str) -> int:
    """What a terminal or a pipe cannot show is escaped; a pipe that was closed is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 141  # 128 + SIGPIPE
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What argparse makes of them; of a misspelt command or option, the nearest right one is told."""
    parser, commands = build_parser()
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        raise SettingError(f"{arguments[0]} goes behind a command: cifarnet COMMAND {arguments[0]} ...")
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command is not None and command not in commands:
        raise SettingError(f'unknown command "{command}"; {did_you_mean(command, commands)}')
    benchmark = arguments[1] if command == "bench" and len(arguments) > 1 else "-"
    if not benchmark.startswith("-") and benchmark not in BENCHMARKS:
        raise SettingError(f'unknown benchmark "{benchmark}"; {did_you_mean(benchmark, BENCHMARKS)}')
    args, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        if word.startswith("-"):
            option = word.partition("=")[0]
            raise SettingError(f"unknown option {option}; {did_you_mean(option, _options(args.parser))}")
    if unknown:
        raise SettingError(f"{shlex.join(unknown)}: one argument too many; {args.parser.prog} --help shows the usage")
    return args


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [word for word in parser.format_usage().replace("[", " ").replace("]", " ").split() if word[:2] == "--"]


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    write_line(f"warning: {message}")


def _fail(error: Exception, code: int, *, debug: bool) -> int:
    if _several():
        from cifarnet.training.distributed import do_not_wait

        do_not_wait()
    if debug:
        raise error
    name = f"cifarnet, rank {_rank()}" if _rank() else "cifarnet"
    write_line("\n".join([f"{name}: error: {error}", *getattr(error, "__notes__", [])]))
    return code


def _several() -> bool:
    """Whether torchrun started this process as one of several; torch, which knows too, may not be imported yet."""
    return os.environ.get("WORLD_SIZE", "") not in ("", "1")


def _rank() -> int:
    """Which of several processes this is: the first one prints, of errors all tell."""
    rank = os.environ.get("RANK", "") if _several() else ""
    return int(rank) if rank.isdecimal() else 0


def _tell_cause(stop: BaseException) -> None:
    """An error in the step that a signal waited for must not be lost with it."""
    if isinstance(stop.__cause__, CifarnetError):
        _fail(stop.__cause__, 1, debug=False)
