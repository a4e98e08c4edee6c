"""A loop of your own: `epochs()` yields a record an epoch; stopping is `break`, logging a line, saving a call.

    python examples/custom_loop.py

Stops when the validation loss has not improved for three epochs, keeps the best weights, and writes each epoch to a
log of its own.
"""

import argparse
import json
from pathlib import Path

import torch

from cifarnet import Checkpointer, CifarCNN, Classifier, Trainer, build_transforms, make_synthetic

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/custom_loop"), help="the run's directory")
parser.add_argument("--epochs", type=int, default=40, help="at most")
parser.add_argument("--images", type=int, default=1000, help="how many to train on")
args = parser.parse_args()

data = make_synthetic(num_train=args.images)
train, val = data.train.split(0.2, seed=0)
torch.manual_seed(0)
model = CifarCNN()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
trainer = Trainer(model, optimizer, transforms=build_transforms(), seed=0)
checkpointer = Checkpointer(args.out)
checkpointer.prepare()
if checkpointer.holds_run():
    parser.error(f"{args.out} holds a run already; choose another --out")

best, best_epoch, weights = float("inf"), 0, model.state_dict()
with (args.out / "log.jsonl").open("w") as log:
    for record in trainer.epochs(train, val, max_epochs=args.epochs):
        print(json.dumps({"epoch": record.epoch, "val_loss": record.val_loss}), file=log, flush=True)
        checkpointer.save(trainer)  # anything that has state_dict and load_state_dict
        assert record.val_loss is not None  # there are validation images
        print(f"epoch {record.epoch}: training loss {record.train_loss:.4f}, validation loss {record.val_loss:.4f}")
        if record.val_loss < best:
            best, best_epoch = record.val_loss, record.epoch
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        elif record.epoch - best_epoch >= 3:
            print("no improvement for three epochs: stopping")
            break

model.load_state_dict(weights)
print(f"epoch {best_epoch} has the best validation loss, {best:.4f}; test {trainer.evaluate(data.test)}")
classifier = Classifier(model, trainer.transforms.preprocess, train.classes)
print(f"a {data.test.classes[3]}: {classifier.predict(data.test.images[3], top_k=3)}")
