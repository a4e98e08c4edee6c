#!/usr/bin/env python3
"""Command ``cifarnet ARGS`` that sends SIGTERM to itself after COUNT steps: stop_after.py COUNT ARGS..."""

import os
import signal
import sys

from cifarnet import cli
from cifarnet.training.state import TrainState


def main() -> int:
    """Run the command and return its exit code."""
    count, *arguments = sys.argv[1:]
    left = int(count)
    complete_step = TrainState.complete_step

    def counted(self: TrainState, train_s: float) -> None:
        nonlocal left
        complete_step(self, train_s)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    TrainState.complete_step = counted  # type: ignore[method-assign]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
