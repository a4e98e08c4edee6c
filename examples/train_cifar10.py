"""Train the reference run: CifarCNN on CIFAR-10 for ten epochs, on CUDA if available.

    python examples/train_cifar10.py --data DIR

`cifarnet train --recipe reference` does the same in one command. This script shows its parts.
"""

import argparse
from pathlib import Path

import torch

from cifarnet import Checkpointer, CifarCNN, Classifier, Trainer, build_transforms, load_cifar10

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, help="folder of CIFAR-10, which is downloaded if missing")
parser.add_argument("--out", type=Path, default=Path("runs/train_cifar10"), help="where checkpoints go")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

# 50,000 training and 10,000 test images, uint8, in memory.
data = load_cifar10(args.data)
print(data.train, data.test, sep="\n")

# Two convolutions, two linear layers, 6,447,754 parameters.
torch.manual_seed(args.seed)
model = CifarCNN()

# Adam as published: learning rate 0.001, weight decay 1e-4 in its classic form, no schedule. `fused` computes the
# same in one pass.
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)

# The published project does not describe its augmentation. This one was chosen on 5,000 validation images.
transforms = build_transforms(crop_padding=2, crop_mode="zero", flip="random")
trainer = Trainer(model, optimizer, transforms=transforms, seed=args.seed)
print(f"training on {trainer.device} in {trainer.precision.name}")

# The published curve shows test accuracy after each epoch. It selects nothing: without validation images, the weights
# of the last epoch count.
history = trainer.fit(
    data.train,
    test=data.test,
    max_epochs=args.epochs,
    batch_size=64,
    checkpointer=Checkpointer(args.out),
    resume=True,
)
history.save_csv(args.out / "history.csv")

# Use the trained network, here or in another process.
classifier = Classifier.load(args.out)
print(f"test {classifier.evaluate(data.test)}")
print(f"{sum(record.train_s + record.eval_s for record in history) / 60:.1f} minutes; published: 77.63 % in ~20")
