"""Train, save, reload, evaluate, predict and draw: the library in one script.

python examples/quickstart.py                 # synthetic images, half a minute on two CPU cores
python examples/quickstart.py --data DIR      # CIFAR-10, downloaded if it is not there
"""

import argparse
from pathlib import Path

import torch

from cifarnet import Checkpointer, CifarCNN, Classifier, Trainer, build_transforms, load_cifar10, make_synthetic
from cifarnet.visualize import plot_augmentations, plot_predictions, plot_training_curves

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, help="where CIFAR-10 is; without it, synthetic shapes")
parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="the run's directory")
parser.add_argument("--epochs", type=int, default=6)
args = parser.parse_args()

# uint8 images in memory. The images of `val` choose the best epoch; the test images are used once, at the end.
data = make_synthetic() if args.data is None else load_cifar10(args.data)
train, val = data.train.split(val_fraction=0.1, seed=0)

# A network, any torch optimizer, and the transforms.
torch.manual_seed(0)
model = CifarCNN(num_classes=len(data.train.classes))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
transforms = build_transforms(crop_padding=2)
trainer = Trainer(model, optimizer, transforms=transforms, seed=0)

# If this is interrupted, run it again: it resumes, and the result is bit-identical.
history = trainer.fit(train, val, max_epochs=args.epochs, checkpointer=Checkpointer(args.out), resume=True)

# The best weights of the run with their preprocessing and class names.
classifier = Classifier.load(args.out)
print(classifier)
print(f"test {classifier.evaluate(data.test)}")
print(f"the first test image is a {data.test.classes[data.test[0][1]]}: {classifier.predict(data.test[0][0], top_k=3)}")

plot_training_curves(history).savefig(args.out / "training_curves.png")
plot_predictions(classifier, data.test).savefig(args.out / "predictions.png")
plot_augmentations(transforms, train).savefig(args.out / "augmentations.png")
print(f"figures are in {args.out}")
