"""Training throughput: every backend of this machine and the script that a user would write, in turns.

Each backend trains in a process of its own, which waits on a pipe while it is not its turn; the script is run anew
for each of its parts. What disturbs the machine for a while so disturbs all of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from cifarnet._choices import BACKENDS
from cifarnet._validation import check_choice, check_count
from cifarnet.bench.contender import BackendProcess, Job
from cifarnet.bench.script import ScriptRuns
from cifarnet.bench.timing import summarize
from cifarnet.data import DatasetSplits
from cifarnet.errors import SettingError
from cifarnet.inference import describe_machine, resolve_device, resolve_precision
from cifarnet.recipes import Recipe

__all__ = ["format_training", "measure_training"]

Load = Callable[[], DatasetSplits]


class Contender(Protocol):
    """Whatever trains a number of steps when it is told to."""

    name: str

    def images_per_s(self) -> float:
        """Train a part."""

    def describe(self) -> dict[str, Any]:
        """What is known of it once all its parts are done."""


def measure_training(
    recipe: Recipe,
    load: Load,
    *,
    num_steps: int = 100,
    rounds: int = 10,
    backends: Sequence[str] | None = None,
    script: Sequence[str] = (),
    workers: Sequence[int] = (0, 2, 4),
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Train parts of some steps by each contender in turns, every other round in reverse order.

    Of each contender the document says

    - ``images_per_s``: median, range and number of its parts, and all ``values``; augmentation is on the clock;
    - ``ratio``: its median to that of the ``baseline``: the fastest of the script's, else the first backend;
    - ``start_s``: from the start of its process to the end of its first step, imports, reading and compiling included,
      the latter from an empty cache (``compiler_cache`` of the document);
    - ``preparation_s``: what the warm-up took beyond as many steps later: compiling, capturing, loading kernels;
    - ``data_path_share``: of a part's time, what index, augmentation and preprocessing take when nothing else is done;
      ``None`` for the script, and where graphs prepare the images of many steps together;
    - ``peak_memory_mb``: see `PeakMemory`; of the script on a CPU, of its main process, beyond what the library's own
      processes held after their imports; ``None`` where nobody knows.

    Args:
        recipe: What is trained.
        load: Gives the data; it is sent to other processes, so it must be picklable, as `load_cifar10` is.
        num_steps: Steps a part, within the first epoch's number of them.
        rounds: Parts a contender.
        backends: As `Trainer` names them; ``None`` takes eager, and on CUDA also cuda-graph.
        script: A Python file and its arguments. Run with ``--steps``, ``--workers``, ``--batch-size`` and
            ``--device`` besides, its last line shall be a JSON object with ``images_per_s``; it may have
            ``precision`` and ``peak_memory_mb`` too. Empty: none.
        workers: How many of a ``DataLoader``'s workers the script is tried with.
        device: See `Trainer`.
        precision: Of the backends, see `Trainer`; the script's is its own affair.

    Returns:
        Plain values; times in seconds, memory in megabytes.

    Raises:
        SettingError: If a value is outside its range, or there are too few images.
        CifarnetError: If a contender's process ends before its work is done.
    """
    check_count("num_steps", num_steps, "100 is the default")
    check_count("rounds", rounds, "10 is the default")
    resolved = resolve_device(device)
    machine = describe_machine(resolve_precision(precision, resolved))
    if backends is None:
        backends = ("eager", *(("cuda-graph",) if resolved.type == "cuda" else ()))
    if not backends:
        raise SettingError("backends must name at least one; leave it out for all that are there")
    for backend in backends:
        check_choice("backend", backend, BACKENDS)
    with ExitStack() as stack:
        own = [
            stack.enter_context(BackendProcess(Job(recipe, load, backend, num_steps, rounds, device, precision)))
            for backend in backends
        ]
        of_script = [
            ScriptRuns(script, num_workers, num_steps, recipe.batch_size, resolved, imported_mb=own[0].imported_mb)
            for num_workers in (workers if script else ())
        ]
        contenders: list[Contender] = [*own, *of_script]
        values: list[list[float]] = [[] for _ in contenders]
        for round_ in range(rounds):
            turns = list(zip(contenders, values, strict=True))
            for contender, rates in turns if round_ % 2 == 0 else reversed(turns):
                rates.append(contender.images_per_s())
        described = [contender.describe() for contender in contenders]
    medians = [statistics.median(rates) for rates in values]
    first_of_script = len(own) if of_script else 0
    baseline = max(range(first_of_script, len(contenders)), key=medians.__getitem__) if of_script else 0
    return {
        "kind": "training",
        "recipe": recipe.name,
        "batch_size": recipe.batch_size,
        "steps": num_steps,
        "script": Path(script[0]).name if script else None,
        "baseline": contenders[baseline].name,
        "compiler_cache": "empty",
        "contenders": [
            {
                "name": contender.name,
                "images_per_s": {**summarize(rates), "values": rates},
                "ratio": statistics.median(rates) / medians[baseline],
                **facts,
            }
            for contender, rates, facts in zip(contenders, values, described, strict=True)
        ],
        **machine,
    }


def format_training(document: Mapping[str, Any]) -> str:
    """The measurement of `measure_training` as a table in Markdown.

    Args:
        document: What it gave.
    """
    lines = [
        f"| | precision | images/s | range | n | ratio to {document['baseline']} | start | preparation | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for x in document["contenders"]:
        rate = x["images_per_s"]
        cells = [
            x["name"] if x["backend"] in (None, x["name"]) else f"{x['name']}, which fell back to {x['backend']}",
            x["precision"] or "",
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f} to {rate['max']:,.0f}",
            str(rate["n"]),
            f"{x['ratio']:.2f}",
            *("" if x[key] is None else f"{x[key]:.1f} s" for key in ("start_s", "preparation_s")),
            "" if x["peak_memory_mb"] is None else f"{x['peak_memory_mb']:,.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    shares = {x["name"]: x["data_path_share"] for x in document["contenders"] if x.get("data_path_share") is not None}
    told = [f"{share:.1%} of a part ({name})" for name, share in shares.items()]
    lines += [
        "",
        f"Recipe {document['recipe']}, batches of {document['batch_size']} images, parts of {document['steps']} steps "
        "in turns, augmentation on the clock. Start: to the end of the first step, from the start of the process"
        f"{', the compiler with an empty cache' if document.get('compiler_cache') == 'empty' else ''}. "
        "Memory: beyond what the imports hold.",
        *([f"The data path alone, from the index to normalised images: {', '.join(told)}."] if told else []),
        f"{document['hardware']}, torch {document['versions']['torch']}.",
    ]
    return "\n".join(lines)
