"""Commands of the command line and their options."""

from __future__ import annotations

import argparse
from typing import Any

import cifarnet
from cifarnet._files import to_path

__all__ = ["EXPORT_FORMATS", "RECIPE_NAMES", "TTA_NAMES", "build_parser"]

#: Names that the help shows. They are repeated here because an import of their modules imports torch.
RECIPE_NAMES = ("basic", "reference", "cifarcnn_tuned", "resnet18", "fast94", "fast96")
TTA_NAMES = ("flip", "flip+shift")
EXPORT_FORMATS = ("onnx", "torch")

#: Options of the commands, as arguments of ``add_argument``.
_OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"type": to_path, "metavar": "RUN", "help": "directory of a run, or a best.safetensors"},
    "images": {"type": to_path, "nargs": "+", "metavar": "IMAGE", "help": "picture: PNG, JPEG, WebP, ..."},
    "--recipe": {"default": "reference", "metavar": "NAME", "help": f"one of: {', '.join(RECIPE_NAMES)}"},
    "--data": {"metavar": "DIR", "help": 'CIFAR-10, or a folder with train/CLASS/ and test/CLASS/, or "synthetic"'},
    "--epochs": {"type": int, "metavar": "N", "help": "default: from the recipe"},
    "--batch-size": {"type": int, "metavar": "N", "help": "images per step (default: from the recipe)"},
    "--val-fraction": {"type": float, "metavar": "F", "help": "share of the training images for validation"},
    "--top": {"type": int, "metavar": "K", "help": "largest number of classes (default: 5; with --json all)"},
    "--tta": {"metavar": "T", "help": f"test-time augmentation: {' or '.join(TTA_NAMES)} (default: none)"},
    "--device": {"default": "auto", "metavar": "D", "help": "auto, cpu, cuda, cuda:1, ... (default: auto)"},
    "--precision": {"default": "auto", "metavar": "P", "help": "auto, bf16, float32 or float64 (default: auto)"},
    "--no-cuda-graph": {"action": "store_true", "help": "on CUDA, run the steps one by one"},
    "--deterministic": {"action": "store_true", "help": "on CUDA, use slower kernels that always give equal bits"},
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "default: 0"},
    "--format": {"default": "onnx", "metavar": "F", "help": f"{' or '.join(EXPORT_FORMATS)} (default: onnx)"},
    "--out": {"type": to_path, "metavar": "PATH", "help": "output (default: see the examples)"},
    "--save-every": {"type": float, "default": 30.0, "metavar": "S", "help": "seconds between saves (default: 30)"},
    "--resume": {"action": "store_true", "help": "resume the run in --out, or start it if there is none"},
    "--json": {"action": "store_true", "help": "print one JSON document to stdout, all else to stderr"},
    "--debug": {"action": "store_true", "help": "show the traceback of an error"},
}

_FIRST_STEPS = """\
first steps:
  cifarnet demo                                     from training to prediction in about a minute, offline
  cifarnet train                                    train the reference recipe on CIFAR-10
  cifarnet predict runs/reference cat.jpg           predict the class of a picture

cifarnet COMMAND --help shows the options of a command.
"""

#: Summary, options and examples of each command.
_COMMANDS = {
    "demo": (
        "train on synthetic images, evaluate and predict, in about a minute",
        "--out --device",
        """\
  cifarnet demo                                     write a run to runs/demo
  cifarnet demo --out runs/mine --device cpu
""",
    ),
    "train": (
        "train a recipe and write its report",
        "--recipe --data --epochs --batch-size --val-fraction --device --precision --no-cuda-graph --deterministic "
        "--seed --out --save-every --resume",
        """\
  cifarnet train                                    write the reference run to runs/reference
  cifarnet train --data DIR --val-fraction 0.1      choose the best epoch on the same 5,000 images for every seed
  cifarnet train --data photos --out runs/photos    read photos/train/CLASS/*.jpg and photos/test/CLASS/*.jpg
  cifarnet train --data synthetic --epochs 3        train without CIFAR-10
  cifarnet train --epochs 20 --out runs/a --resume  resume the run in runs/a, or start it
  torchrun --nproc-per-node 2 -m cifarnet train     train the same run in two processes, such as on two GPUs

The run directory gets report.json, history.csv, best.safetensors (to use), last.safetensors (to resume) and figures.
CIFAR-10 is downloaded to --data if that is an empty folder, and to the cache without --data.
""",
    ),
    "evaluate": (
        "evaluate the best weights of a run on test images",
        "path --data --tta --device",
        """\
  cifarnet evaluate runs/reference                  evaluate on the test images of the run
  cifarnet evaluate runs/reference --data DIR --json
  cifarnet evaluate runs/reference --tta flip       average each image and its mirror image
""",
    ),
    "predict": (
        "predict the class of pictures",
        "path images --top --tta --device",
        """\
  cifarnet predict runs/reference cat.jpg           crop any picture that Pillow reads to its central square
  cifarnet predict runs/reference *.png --top 3
  cifarnet predict runs/reference cat.jpg --json    print all probabilities with all digits
""",
    ),
    "export": (
        "export the best weights of a run for use without cifarnet",
        "path --format --out",
        """\
  cifarnet export runs/reference                    write model.onnx to the directory of the run
  cifarnet export runs/reference --format torch     write model.pt2, which torch.export.load reads
  cifarnet export runs/reference --out cats.onnx --json

The exported network maps uint8 images to probabilities. It is compared with the library before the file is written.
""",
    ),
    "report": (
        "write an HTML page about a run: metrics, figures, recipe, environment",
        "path --data --out --device",
        """\
  cifarnet report runs/reference                    write report.html to the directory of the run
  cifarnet report runs/reference --out cats.html    the page is one file and needs no network
  cifarnet report runs/first --data DIR --json      evaluate on other test images

The network is evaluated on the test images again. The page of a run without a report.json says what is missing.
""",
    ),
    "recipes": (
        "list the recipes with their measured results",
        "",
        "  cifarnet recipes\n  cifarnet recipes --json                           print every setting of every recipe\n",
    ),
    "info": (
        "show versions, hardware and the location of CIFAR-10",
        "",
        "  cifarnet info\n  cifarnet info --json                              attach this to a bug report\n",
    ),
}


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the program, and the parser of each command by name."""
    formatter = argparse.RawDescriptionHelpFormatter
    summary = "Train, evaluate and use CIFAR-10 classifiers."
    program = argparse.ArgumentParser(
        prog="cifarnet", description=summary, epilog=_FIRST_STEPS, formatter_class=formatter
    )
    program.add_argument("--version", action="version", version=f"cifarnet {cifarnet.__version__}")
    commands = program.add_subparsers(required=True, metavar="COMMAND")
    for name, (summary, options, examples) in _COMMANDS.items():
        description, epilog = summary[0].upper() + summary[1:] + ".", f"examples:\n{examples}"
        parser = commands.add_parser(
            name, help=summary, description=description, epilog=epilog, formatter_class=formatter
        )
        for option in [*options.split(), "--json", "--debug"]:
            parser.add_argument(option, **_OPTIONS[option])
        parser.set_defaults(command=name, parser=parser)
    return program, dict(commands.choices)
