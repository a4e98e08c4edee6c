"""Use the library's data and transforms in another training loop, with a plain `DataLoader`.

    python examples/with_lightning_or_dataloader.py

`ImageDataset` is a `torch.utils.data.Dataset` of (uint8 image, label), and `transforms.train` a torchvision
`v2.Compose`. It draws for each image of a batch, so apply it once per batch, not once per image in the workers.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

from cifarnet import CifarCNN, Classifier, build_transforms, make_synthetic

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--images", type=int, default=3000, help="how many to train on")
args = parser.parse_args()

data = make_synthetic(num_train=args.images)
transforms = build_transforms(crop_padding=2)
loader = DataLoader(data.train, batch_size=64, shuffle=True)  # num_workers= works too: the data set pickles

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = CifarCNN().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)

# In Lightning, the body of this loop is training_step, and `loader` goes to Trainer.fit.
for epoch in range(args.epochs):
    model.train()
    total, correct = 0.0, 0
    for images, labels in loader:  # (N, 3, 32, 32) uint8, (N,) int64
        images, labels = transforms.train(images.to(device)), labels.to(device)
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
    print(f"epoch {epoch + 1}: loss {total / len(data.train):.4f}, accuracy {correct / len(data.train):.2%}")

# The other way round: weights from any loop, evaluated and used by a `Classifier`.
classifier = Classifier(model, transforms.preprocess, data.train.classes)
print(f"test {classifier.evaluate(data.test)}")
print(f"a {data.test.classes[0]}: {classifier.predict(data.test[0][0], top_k=3)}")
