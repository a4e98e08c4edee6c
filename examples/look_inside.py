"""Draw filters, feature maps and Grad-CAM of a trained network.

    python examples/look_inside.py runs/ablation/all-three/seed-0 --data DIR

The run is one of `examples/ablation.py`, or another run of CifarCNN with seed 0. The images are the first test image of
each class. Figures and predictions are written to --out.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cosine_similarity

from cifarnet import Classifier, load_cifar10
from cifarnet.models import build_model
from cifarnet.models.registry import describe_model
from cifarnet.visualize import plot_feature_maps, plot_filters, plot_grad_cam

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="a run of CifarCNN, trained with seed 0")
parser.add_argument("--data", type=Path, help="folder of CIFAR-10, which is downloaded if missing")
parser.add_argument("--follow", default="ship", help="class of the image whose feature maps are drawn")
parser.add_argument("--out", type=Path, default=Path("runs/look_inside"), help="where figures and report go")
args = parser.parse_args()

classifier = Classifier.load(args.run)
test = load_cifar10(args.data).test
labels = test.labels.tolist()
firsts = {name: test[labels.index(label)][0] for label, name in enumerate(test.classes)}
args.out.mkdir(parents=True, exist_ok=True)

# Initial and trained weights of this network.
described = describe_model(classifier.model)
torch.manual_seed(0)
fresh = build_model(described["name"], described["arguments"])
figure = Figure(figsize=(8.5, 2.8), dpi=100, layout="constrained")
left, right = figure.subfigures(1, 2, wspace=0.08, squeeze=False)[0]
for panel, model, when in ((left.subplots(), fresh, "before"), (right.subplots(), classifier.model, "after")):
    plot_filters(model, ax=panel)
    panel.set_title(f"{when} training: {panel.get_title()}", fontsize=9)
figure.savefig(args.out / "filters.png")
before, after = fresh.get_parameter("conv1.weight"), classifier.model.get_parameter("conv1.weight").cpu()
cosines = cosine_similarity(before.detach().flatten(1), after.detach().flatten(1))

plot_feature_maps(classifier, firsts[args.follow]).savefig(args.out / "feature_maps.png", dpi=100)
plot_grad_cam(classifier, list(firsts.values())).savefig(args.out / "grad_cam.png", dpi=95)

report = {
    "command": shlex.join(["python", *sys.argv]),
    "data": test.name,
    "selected_by": classifier.selected_by,
    "torch": str(torch.__version__),
    "conv1_cosine": {"median": float(cosines.median()), "least": float(cosines.min())},
    "images": [
        {"class": name, "taken_for": [list(guess) for guess in classifier.predict(image, top_k=2).top]}
        for name, image in firsts.items()
    ],
}
(args.out / "features.json").write_text(json.dumps(report, indent=1) + "\n")
print(json.dumps(report, indent=1))
