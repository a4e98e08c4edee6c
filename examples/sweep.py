"""Search the settings of a recipe with Optuna: several processes, early end of bad trials, resume after a kill.

    python examples/sweep.py --data DIR --trials 30 --epochs 5
    python examples/sweep.py --data DIR --set learning_rate=1e-4:1e-2 --set crop_padding=0,2,4 --workers 2

``low:high`` is a range on a logarithmic scale, and a list separated by commas is a choice. Each trial trains on 90 % of
the training images and reports its validation accuracy after each epoch. Optuna ends a trial that is below the median
of the earlier ones. After an interruption, run the same command again: unfinished trials resume. Several machines can
search together if they share ``--out`` and a database, ``--storage``.
"""

import argparse
import ast
import json
import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from matplotlib.figure import Figure
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from cifarnet import Classifier, load_cifar10, make_synthetic
from cifarnet.errors import DeviceMemoryError, NonFiniteError
from cifarnet.recipes import build_trainer, get_recipe

DEFAULT_SPACE = ["learning_rate=1e-4:1e-2", "crop_padding=0,2,4", "label_smoothing=0.0,0.1"]
#: Seconds between two signs of life of a trial. After three missed ones, its process counts as killed.
HEARTBEAT_S = 10

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats and retries
retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help='folder of CIFAR-10, which is downloaded if missing, or "synthetic"')
    parser.add_argument("--recipe", default="basic", help="recipe whose settings are searched (default: basic)")
    parser.add_argument("--set", action="append", metavar="FIELD=VALUES", help=f"default: {' '.join(DEFAULT_SPACE)}")
    parser.add_argument("--epochs", type=int, default=5, help="epochs per trial (default: 5)")
    parser.add_argument("--trials", type=int, default=30, help="trials of the whole search (default: 30)")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--storage", help="address of an SQL database (default: a file in --out)")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    open_study(args)  # creates the tables before several processes would
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(args, number)) for number in range(1, args.workers)]
    for worker in workers:
        worker.start()
    try:
        work(args, 0)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for worker in workers:
            worker.join()
    summarize(args)


def open_study(args: argparse.Namespace) -> optuna.Study:
    """Open the study, or create it. The trial of a killed process is retried."""
    address = args.storage or f"sqlite:///{args.out}/study.db"
    storage = RDBStorage(
        address,
        heartbeat_interval=HEARTBEAT_S,
        grace_period=3 * HEARTBEAT_S,
        heartbeat_stale_trial_callback=retry,
    )
    return optuna.create_study(
        study_name=f"{args.recipe}, {args.epochs} epochs",
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(constant_liar=True),
        load_if_exists=True,
    )


def work(args: argparse.Namespace, number: int) -> None:
    """Run trials until the study has as many as asked for, and all of them have ended."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.workers))
    study, data = open_study(args), load_data(args.data)
    train, val = data.train.split(0.1, seed=0)

    def objective(trial: Trial) -> float:
        recipe = replace(get_recipe(args.recipe), max_epochs=args.epochs, **suggest(trial, args.set or DEFAULT_SPACE))
        trainer = build_trainer(recipe, train)
        options: dict[str, Any] = {"max_epochs": args.epochs, "batch_size": recipe.batch_size}
        directory = run_dir(args, study.trials[trial.number])
        try:
            for record in trainer.epochs(train, val, checkpointer=directory, resume=True, **options):
                assert record.val_accuracy is not None
                trial.report(record.val_accuracy, record.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
        except KeyboardInterrupt:  # the trial is saved
            retry(study, study.trials[trial.number])
            raise
        best = trainer.history.best()
        assert best is not None
        assert best.val_accuracy is not None
        return best.val_accuracy

    while True:
        optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in trials) or len(originals(trials)) < args.trials:
            study.optimize(objective, n_trials=1, catch=(NonFiniteError, DeviceMemoryError))
        elif any(trial.state == TrialState.RUNNING for trial in trials):
            time.sleep(HEARTBEAT_S)  # another process may end, or have been killed
        else:
            return


def originals(trials: list[FrozenTrial]) -> set[int]:
    """Return the numbers of all trials, without those that repeat an interrupted one."""
    return {trial.number for trial in trials if retry.retried_trial_number(trial) is None}


def run_dir(args: argparse.Namespace, trial: FrozenTrial) -> Path:
    """Return the directory of a trial. A retried trial uses that of the interrupted one."""
    original = retry.retried_trial_number(trial)
    return Path(args.out) / f"trial-{trial.number if original is None else original}"


def suggest(trial: Trial, space: list[str]) -> dict[str, Any]:
    """Let Optuna choose a value for each field, such as ``learning_rate=1e-4:1e-2`` or ``flip=random,none``."""
    chosen: dict[str, Any] = {}
    for name, values in (text.split("=", 1) for text in space):
        if ":" in values:
            low, high = map(float, values.split(":"))
            chosen[name] = trial.suggest_float(name, low, high, log=True)
        else:
            chosen[name] = trial.suggest_categorical(name, [parse(value) for value in values.split(",")])
    return chosen


def parse(text: str) -> Any:
    """Read a number, or keep a word such as ``random``."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_data(place: str | None) -> Any:
    """Load CIFAR-10, or a few synthetic images."""
    return make_synthetic(400, 100) if place == "synthetic" else load_cifar10(place)


def summarize(args: argparse.Namespace) -> None:
    """Print the best trials, and write the best settings as a recipe and a figure of the search."""
    study = open_study(args)
    done = sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: -(trial.value or 0))
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    if not done:
        sys.exit("No trial completed")
    print(f"{len(done)} trials completed, {len(pruned)} ended early. Best validation accuracies:")
    for trial in done[:5]:
        print(f"{trial.value:.2%} {json.dumps(trial.params)} {run_dir(args, trial)}")
    best = replace(get_recipe(args.recipe), max_epochs=args.epochs, **done[0].params)
    (args.out / "best_recipe.json").write_text(json.dumps(asdict(best), indent=1) + "\n")
    classifier = Classifier.load(run_dir(args, done[0]))
    print(f"Best trial on the test images: {classifier.evaluate(load_data(args.data).test)}")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([t.number for t in done], [t.value or 0 for t in done], "o", label="completed")
    last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
    axes.plot([t.number for t in pruned], last, "x", color="grey", label="ended early")
    axes.set(xlabel="trial", ylabel="validation accuracy")
    axes.legend()
    figure.savefig(args.out / "search.png", dpi=150)


if __name__ == "__main__":
    main()
