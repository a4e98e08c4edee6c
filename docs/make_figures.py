"""Draw the figures of README and gallery from the examples and from committed reports.

python docs/make_figures.py                        # about two minutes on two CPU cores

Each figure contains the SHA-256 of its source; a test finds figures that are older than their source.
"""

import hashlib
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cifarnet import History
from cifarnet.visualize import plot_training_curves

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "gallery" / "figures"
REPORT = ROOT / "docs" / "results" / "cpu" / "reference" / "seed-0.json"

#: Figures drawn by a script: name of the figure, script, and path of the file that the script writes.
DRAWN = {
    "quickstart-curves.png": ("quickstart.py", "runs/quickstart/training_curves.png"),
    "quickstart-predictions.png": ("quickstart.py", "runs/quickstart/predictions.png"),
    "quickstart-augmentations.png": ("quickstart.py", "runs/quickstart/augmentations.png"),
    "custom-images.png": ("custom_images.py", "runs/my_photos/photos.png"),
}
CURVES = "reference-curves.png"


def sources() -> dict[str, Path]:
    """Return the source of each figure."""
    return {**{name: ROOT / "examples" / script for name, (script, _) in DRAWN.items()}, CURVES: REPORT}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_current(name: str) -> bool:
    """Return whether the committed figure was drawn from the current source."""
    with Image.open(FIGURES / name) as image:
        return image.info.get("Source") == digest(sources()[name])


def keep(drawn: Path, name: str) -> None:
    """Save a figure with few colours and with the hash of its source."""
    about = PngInfo()
    about.add_text("Source", digest(sources()[name]))
    with Image.open(drawn) as image:
        small = image.convert("RGB")
        small.thumbnail((1200, 1200))
        small.quantize(256, kmeans=2).save(FIGURES / name, optimize=True, pnginfo=about)
    print(f"{FIGURES / name}: {(FIGURES / name).stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Draw all figures."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for script in dict.fromkeys(script for script, _ in DRAWN.values()):
            sys.argv = [script]
            runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        plot_training_curves(History.from_list(json.loads(REPORT.read_text())["history"])).savefig(CURVES)
        for name, (_, file) in DRAWN.items():
            keep(Path(file), name)
        keep(Path(CURVES), CURVES)


if __name__ == "__main__":
    main()
