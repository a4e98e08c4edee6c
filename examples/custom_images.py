"""Train a classifier for your own photos, in one folder per class.

    python examples/custom_images.py --photos DIR     # DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg

Formats and sizes may be mixed. Without --photos, the script draws some pictures.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from cifarnet import Checkpointer, CifarCNN, Classifier, Trainer, build_transforms, load_image_folder, make_synthetic
from cifarnet.visualize import plot_predictions


def draw_photos(root: Path, num_images: int) -> Path:
    """Draw three classes of pictures, 80 x 60 pixels each."""
    data = make_synthetic(num_images, num_images // 4, size=80)
    for split, images in (("train", data.train), ("test", data.test)):
        for i, (image, label) in enumerate(images):
            folder = root / split / images.classes[label]
            if label in (0, 4, 8) and not (folder / f"{i}.jpg").exists():
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[:, 10:70].permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
    return root


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--photos", type=Path, help="the folder; drawn where there is none")
parser.add_argument("--out", type=Path, default=Path("runs/my_photos"), help="the run's directory")
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--num-drawn", type=int, default=2000, help="how many to draw, three tenths of which are used")
args = parser.parse_args()

# Every picture is cropped to its central square and resized. The folder names become the class names.
data = load_image_folder(args.photos or draw_photos(args.out / "photos", args.num_drawn), size=32)
print(data.train, data.train.class_counts, sep="\n")
train, val = data.train.split(0.2, seed=0)

torch.manual_seed(0)
model = CifarCNN(num_classes=len(data.train.classes))
trainer = Trainer(model, torch.optim.Adam(model.parameters()), transforms=build_transforms(flip="random"), seed=0)
trainer.fit(train, val, max_epochs=args.epochs, checkpointer=Checkpointer(args.out), patience=5, resume=True)

classifier = Classifier.load(args.out)
print(f"test {classifier.evaluate(data.test)}")
photos = sorted((args.photos or args.out / "photos").glob("test/*/[!.]*"))
photos = photos[:: max(1, len(photos) // 6)][:6]
for photo, prediction in zip(photos, classifier.predict(photos), strict=True):
    print(f"{photo.parent.name}/{photo.name}: {prediction}")
plot_predictions(classifier, data.test).savefig(args.out / "photos.png")
