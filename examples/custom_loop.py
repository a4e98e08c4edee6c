"""Loop over `Trainer.epochs`, which yields a record per epoch. The loop body is your code.

    python examples/custom_loop.py

The body halves the learning rate if the validation loss stops falling, and writes a line per epoch to log.jsonl.
Training stops after 3 epochs without improvement. If it was interrupted, run the same command again to resume it.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cifarnet import CifarCNN, Classifier, Trainer, build_transforms, make_synthetic
from cifarnet.inference import top_k_accuracy

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/custom_loop"), help="directory of the run")
parser.add_argument("--epochs", type=int, default=40, help="largest number of epochs")
parser.add_argument("--images", type=int, default=1000, help="number of training images")
args = parser.parse_args()

data = make_synthetic(num_train=args.images)
train, val = data.train.split(0.2, seed=0)
torch.manual_seed(0)
model = CifarCNN()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
trainer = Trainer(model, optimizer, transforms=build_transforms(), seed=0)

args.out.mkdir(parents=True, exist_ok=True)
with (args.out / "log.jsonl").open("a") as log:
    for record in trainer.epochs(
        train,
        val,
        max_epochs=args.epochs,
        checkpointer=args.out,
        resume=True,
        monitor="val_loss",
        patience=3,
        metrics={"top3": lambda logits, labels: top_k_accuracy(logits, labels, k=3)},
    ):
        print(json.dumps(record.to_dict()), file=log, flush=True)
        print(f"epoch {record.epoch}: validation loss {record.val_loss:.4f}, top 3 {record.metrics['val_top3']:.1%}")
        assert record.val_loss is not None  # because there are validation images
        scheduler.step(record.val_loss)

print(f"epoch {trainer.best.epoch} has the best validation loss; test {trainer.evaluate(data.test)}")
classifier = Classifier.load(args.out)
print(f"a {data.test.classes[3]}: {classifier.predict(data.test.images[3], top_k=3)}")
