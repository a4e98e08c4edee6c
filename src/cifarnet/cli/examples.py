"""What the help of each command shows it with."""

__all__ = [
    "ACCURACY",
    "BENCH",
    "DEMO",
    "EVALUATE",
    "EXPORT",
    "FIRST_STEPS",
    "INFERENCE",
    "INFO",
    "PREDICT",
    "RECIPES",
    "REPORT",
    "SAVING",
    "START",
    "TRAIN",
    "TRAINING",
]

FIRST_STEPS = """\
first steps:
  cifarnet demo                                     the whole way in about a minute, without a download
  cifarnet train                                    the reference run on CIFAR-10
  cifarnet predict runs/reference cat.jpg           what a picture shows

cifarnet COMMAND --help shows more of each.
"""

DEMO = """\
examples:
  cifarnet demo                                     leaves a run in runs/demo to look at
  cifarnet demo --out runs/mine --device cpu
"""

TRAIN = """\
examples:
  cifarnet train                                    the reference run; CIFAR-10 is downloaded if need be
  cifarnet train --data DIR --val-fraction 0.1      hold 5,000 images out, keep the best epoch on them
  cifarnet train --data photos --out runs/photos    your own: photos/train/CLASS/*.jpg, photos/test/CLASS/*.jpg
  cifarnet train --data synthetic --epochs 3        a try without CIFAR-10
  cifarnet train --epochs 20 --out runs/a --resume  go on where these very options were stopped, or begin
  torchrun --nproc-per-node 2 -m cifarnet train     the same run in two processes, on two GPUs where there are

A run leaves report.json, history.csv, best.safetensors (to use), last.safetensors (to go on from) and figures.
"""

EVALUATE = """\
examples:
  cifarnet evaluate runs/reference                  accuracy of the best weights on the run's own test images
  cifarnet evaluate runs/reference --data DIR --json
  cifarnet evaluate runs/reference --tta flip       average each image and its flip
"""

PREDICT = """\
examples:
  cifarnet predict runs/reference cat.jpg           the square in the centre of any picture that Pillow reads
  cifarnet predict runs/reference *.png --top 3
  cifarnet predict runs/reference cat.jpg --json    every probability with all its digits
"""

EXPORT = """\
examples:
  cifarnet export runs/reference                    model.onnx in the run's directory, for any ONNX runtime
  cifarnet export runs/reference --format torch     model.pt2, for torch.export.load
  cifarnet export runs/reference --out cats.onnx --json

The file takes uint8 images and gives probabilities; it is compared with the library before it is written.
"""

REPORT = """\
examples:
  cifarnet report runs/reference                    report.html in the run's directory, to open in any browser
  cifarnet report runs/reference --out cats.html    to send to somebody: it needs no other file and no network
  cifarnet report runs/first --data DIR --json      of a run whose own test images are elsewhere now

The network is scored on the test images again; runs without a report.json have a page too, which says what it lacks.
"""

BENCH = """\
examples:
  cifarnet bench training --script examples/plain_pytorch.py
                                                    every backend and the script, in turns
  cifarnet bench inference --device cpu             evaluation, and the prediction of one image
  cifarnet bench accuracy --runs 40 --target 0.94   time to accuracy of a recipe
  cifarnet bench saving --data DIR --json           what it costs to save a run while it trains
  cifarnet bench start --data DIR                   from a new process to the first step and to the saved model

cifarnet bench WHAT --help shows the options of each. Give it the machine alone: whatever else runs is measured too.
"""

TRAINING = """\
examples:
  cifarnet bench training                           eager, compiled and, on a GPU, CUDA graphs
  cifarnet bench training --script examples/plain_pytorch.py --json
  cifarnet bench training --backends eager --steps 20 --rounds 3
"""

INFERENCE = """\
examples:
  cifarnet bench inference                          the network of the reference recipe
  cifarnet bench inference --device cpu --precision float32 --json
"""

ACCURACY = """\
examples:
  cifarnet bench accuracy                           three runs of the reference recipe
  cifarnet bench accuracy --runs 40 --target 0.94   does the mean reach 94 %? a one-sided t-test
  cifarnet bench accuracy --runs 1 --saves --cold   with saves, and from a new process to a saved model
  cifarnet bench accuracy --script examples/plain_pytorch.py
                                                    does the script learn as much with the same seeds?
"""

SAVING = """\
examples:
  cifarnet bench saving
  cifarnet bench saving --data DIR --json
"""

START = """\
examples:
  cifarnet bench start --data DIR                   five times from nothing to a model
  cifarnet bench start --recipe fast94 --epochs 8 --runs 3 --json
"""

RECIPES = """\
examples:
  cifarnet recipes
  cifarnet recipes --json                           every value of every recipe
"""

INFO = """\
examples:
  cifarnet info                                     is there a GPU, and where is CIFAR-10?
  cifarnet info --json                              to attach to a bug report
"""
