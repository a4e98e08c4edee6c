"""Train the reference run as a tutorial would write it: a `DataLoader`, Pillow transforms, float32, a loop.

Of the library, it uses only the network and the reader of CIFAR-10.
`examples/benchmarks/train_throughput.py` compares it with the library.

    python examples/plain_pytorch.py --data data                    the whole run
    python examples/plain_pytorch.py --data data --steps 100        the speed of 100 steps
"""

import argparse
import json
import resource
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifarnet import CifarCNN, ImageDataset, load_cifar10, make_synthetic

Batches = Iterable[tuple[Tensor, Tensor]]

NORMALISE = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TRAIN = transforms.Compose(
    [transforms.RandomCrop(32, padding=2), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALISE]
)
EVAL = transforms.Compose([transforms.ToTensor(), NORMALISE])
WARM_UP = 20  # steps before the measurement, in which threads, workers and kernels start


class Pictures(Dataset[tuple[Tensor, int]]):
    """Data set like torchvision's CIFAR10: pixels in an array, and a Pillow picture per item."""

    def __init__(self, images: ImageDataset, transform: transforms.Compose) -> None:
        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = self.transform(Image.fromarray(self.pixels[index]))
        return image, self.labels[index]


def train_on(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, device: str) -> tuple[float, float]:
    """Train one step per batch; return mean loss and accuracy."""
    model.train()
    total_loss, num_correct, num_images = 0.0, 0, 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(labels)
        num_correct += int((logits.argmax(dim=1) == labels).sum())
        num_images += len(labels)
    return total_loss / num_images, num_correct / num_images


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, device: str) -> float:
    """Return the accuracy."""
    model.eval()
    num_correct, num_images = 0, 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        num_correct += int((model(images).argmax(dim=1) == labels).sum())
        num_images += len(labels)
    return num_correct / num_images


def endless(loader: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of epoch after epoch."""
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help='where CIFAR-10 is, or "synthetic"')
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="measure so many steps instead of training")
    args = parser.parse_args()
    imported_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    torch.manual_seed(args.seed)
    data = make_synthetic() if args.data == "synthetic" else load_cifar10(args.data)
    pinned = {"num_workers": args.workers, "pin_memory": args.device == "cuda"}
    train = DataLoader(Pictures(data.train, TRAIN), batch_size=args.batch_size, shuffle=True, **pinned)
    test = DataLoader(Pictures(data.test, EVAL), batch_size=500, **pinned)
    model = CifarCNN(len(data.train.classes)).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)

    if args.steps:
        batches = endless(train)
        train_on(model, islice(batches, WARM_UP), optimizer, args.device)
        started = time.perf_counter()
        train_on(model, islice(batches, args.steps), optimizer, args.device)
        rate = args.steps * args.batch_size / (time.perf_counter() - started)
        memory_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported_kb) * 1024 / 1e6
        if args.device == "cuda":
            memory_mb = torch.cuda.max_memory_allocated() / 1e6
        print(json.dumps({"images_per_s": rate, "precision": "float32", "peak_memory_mb": memory_mb}))
        return
    train_s, history = 0.0, list[dict[str, float]]()
    for epoch in range(1, args.epochs + 1):
        started = time.perf_counter()
        loss, accuracy = train_on(model, train, optimizer, args.device)
        train_s += time.perf_counter() - started
        test_accuracy = evaluate(model, test, args.device)
        history.append({"train_loss": loss, "train_accuracy": accuracy, "test_accuracy": test_accuracy})
        print(f"epoch {epoch}: {history[-1]}", flush=True)
    machine = {"device": args.device, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    print(json.dumps({"seed": args.seed, "epochs": args.epochs, "train_s": train_s, **machine, "history": history}))


if __name__ == "__main__":
    main()
