"""An exported file gives the probabilities of the library, and needs no cifarnet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifarnet import Checkpointer, Classifier, DatasetSplits, Preprocess, Trainer
from cifarnet.errors import CifarnetError, DataError, NonFiniteError, SettingError
from cifarnet.export import TOLERANCE, ExportedFile, export_onnx, export_torch
from cifarnet.export.verification import draw_images
from cifarnet.inference import predict_logits
from cifarnet.models import MODELS, build_model

ROOT = Path(__file__).resolve().parents[2]
HOWTO = ROOT / "docs" / "howto" / "export.md"
SIZE = 16  # pixels, as those of `synthetic`

Write = Callable[..., ExportedFile]
WRITERS: dict[str, Write] = {"model.onnx": export_onnx, "model.pt2": export_torch}
both_formats = pytest.mark.parametrize("name", sorted(WRITERS))


class Own(nn.Module):
    """User-supplied network with branches, a buffer, an operation in place and float64 inside."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4 * (SIZE // 2) ** 2, 10)
        self.register_buffer("grid", torch.linspace(0, 1, SIZE // 2), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = nn.functional.silu(self.norm(self.conv(images)))
        x = torch.cat([x[:, :2] * self.grid, x[:, 2:].double().softmax(dim=-1).to(x.dtype)], dim=1)
        x = x.add_(1).reshape(x.shape[0], -1)
        logits: Tensor = self.head(x)
        return logits


def build(name: str) -> Classifier:
    """Build a classifier whose probabilities are not nearly equal."""
    torch.manual_seed(0)
    if name == "FastCNN of three":
        model = build_model("FastCNN", {"convs_per_group": 3, "widths": (16, 24, 32)})
    else:
        sized = {"image_size": SIZE} if name in ("BasicCNN", "CifarCNN") else {}
        model = Own() if name == "Own" else build_model(name, sized)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]
    preprocess = Preprocess(SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    images = draw_images((3, SIZE, SIZE))[:16]
    with torch.no_grad():
        head = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))
        head.weight *= 16 / model.eval()(preprocess(images)).std(dim=0).mean()
    classifier = Classifier(model, preprocess, tuple("abcdefghij"), device="cpu", precision="float32")
    classifier.temperature = 2.0
    return classifier


def probabilities_of(path: Path, images: Tensor) -> Tensor:
    """Run the file without the library."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # torch 2.10
        program = torch.export.load(path)
    given: Tensor = program.module()(images)
    return given


@torch.no_grad()
def library(classifier: Classifier, images: Tensor) -> Tensor:
    logits = predict_logits(classifier.model, images, preprocess=classifier.preprocess, precision=classifier.precision)
    return (logits.double() / classifier.temperature).softmax(dim=1)


@both_formats
@pytest.mark.parametrize("network", [*sorted(MODELS), "FastCNN of three", "Own"])
def test_export_gives_the_calibrated_probabilities(network: str, name: str, tmp_path: Path) -> None:
    classifier = build(network)
    exported = WRITERS[name](classifier, tmp_path / name)
    images = torch.randint(0, 256, (9, 3, SIZE, SIZE), dtype=torch.uint8)
    for count in (1, 2, 3, 9):
        expected = library(classifier, images[:count])
        given = probabilities_of(exported.path, images[:count])
        assert given.dtype == torch.float32
        assert (given.double() - expected).abs().max() < 3e-5  # 1.2e-5 on a processor without AVX-512
    assert (library(classifier, images).amax(dim=1) > 0.5).any(), "the control"
    if network != "Own":  # onnxruntime's group norm needs an image
        assert probabilities_of(exported.path, images[:0]).shape == (0, 10)
    assert 0 < exported.difference == exported.difference_from_run < 3e-5
    assert exported.num_images == 72
    assert exported.num_bytes == exported.path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == [name]


@both_formats
@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_export_is_float32_for_any_precision_of_the_run(precision: str, name: str, tmp_path: Path) -> None:
    model = build("CifarCNN").model
    run = Classifier(model, Preprocess(SIZE), tuple("abcdefghij"), device="cpu", precision=precision)
    weights = {key: value.clone() for key, value in run.model.state_dict().items()}
    exported = WRITERS[name](run, tmp_path / name)
    assert exported.difference <= TOLERANCE
    assert exported.difference_from_run > (1e-3 if precision == "bf16" else 0)
    assert exported.difference_from_run < (0.5 if precision == "bf16" else TOLERANCE)
    assert about(exported.path)["run_precision"] == precision
    assert all(torch.equal(value, weights[key]) for key, value in run.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert type(run.preprocess(draw_images((3, SIZE, SIZE)))) is Tensor


def about(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        return {item.key: json.loads(item.value) for item in onnx.load(path).metadata_props}
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("extra/cifarnet.json"))
        document: dict[str, Any] = json.loads(archive.read(name))
        return document


@both_formats
def test_export_contains_metadata(name: str, tmp_path: Path) -> None:
    metadata = about(WRITERS[name](build("BasicCNN"), tmp_path / name).path)
    assert metadata["classes"] == list("abcdefghij")
    assert (metadata["size"], metadata["mean"], metadata["std"]) == (SIZE, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert (metadata["model"], metadata["precision"]) == ("BasicCNN", "float32")
    assert metadata["input"] == f"images: uint8 in 0..255, shape (N, 3, {SIZE}, {SIZE})"


def test_export_uses_public_operators_only(tmp_path: Path) -> None:
    classifier = build("CifarCNN")  # flattens with an autograd function of the library if gradients are needed
    model = onnx.load(export_onnx(classifier, tmp_path / "model.onnx").path)
    assert b"pkg.torch" not in (tmp_path / "model.onnx").read_bytes()
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    assert not model.functions
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, SIZE, SIZE]
    program = torch.export.load(export_torch(classifier, tmp_path / "model.pt2").path)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert {str(node.target).partition(".")[0] for node in calls} == {"aten"}
    assert not any(parameter.requires_grad for parameter in program.parameters())


def test_export_gives_equal_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_export import WRITERS, build\n"
        "for name, write in WRITERS.items(): write(build('BasicCNN'), name)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    (tmp_path / "here").mkdir()
    for name, write in WRITERS.items():
        content = write(build("BasicCNN"), tmp_path / "here" / name).path.read_bytes()
        assert content == (tmp_path / name).read_bytes()
        for path in (str(ROOT), "site-packages", str(tmp_path), os.path.expanduser("~")):
            assert path.encode() not in content


class Wrong(nn.Module):
    """Network whose output a file cannot reproduce."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.head = nn.Linear(3 * SIZE**2, 10)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.head(images.flatten(1))
        if self.how == "draws":
            return x + torch.rand_like(x)
        if self.how == "looks" and bool(x.sum() > 0):
            return 2 * x
        return x


@both_formats
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("draws", r"would give probabilities up to 0\.\d+ from the library's, more than 0\.0001, and was not written"),
        ("looks", r"Wrong cannot be exported: .*; its forward must be tensor operations"),
    ],
)
def test_export_refuses_unsuitable_networks_and_keeps_the_file(
    how: str, message: str, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    classifier = Classifier(Wrong(how), Preprocess(SIZE), (), device="cpu", precision="float32")
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(CifarnetError, match=message) as caught:
        WRITERS[name](classifier, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@both_formats
def test_export_refuses_weights_with_nan(name: str, tmp_path: Path) -> None:
    classifier = build("BasicCNN")
    with torch.no_grad():
        next(classifier.model.parameters())[0] = torch.nan
    with pytest.raises(NonFiniteError, match="gives NaN or infinity in float32; its weights may be broken"):
        WRITERS[name](classifier, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@both_formats
def test_export_refuses_an_impossible_path(name: str, tmp_path: Path) -> None:
    classifier, write = build("BasicCNN"), WRITERS[name]
    suffix = Path(name).suffix
    with pytest.raises(SettingError, match=rf'must end in "{suffix}", got ".*best.safetensors"; .*best{suffix} does'):
        write(classifier, tmp_path / "best.safetensors")
    with pytest.raises(SettingError, match=r"no folder .*none to write model"):
        write(classifier, tmp_path / "none" / name)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(SettingError, match="is a folder"):
        write(classifier, tmp_path / f"folder{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == [f"folder{suffix}"]


@both_formats
def test_export_refuses_images_of_another_shape(name: str, tmp_path: Path) -> None:
    pixels = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    for images in (pixels.float(), pixels[..., 1:], pixels[:0]):
        with pytest.raises(DataError, match=r"expected uint8 images of shape \(N, 3, 16, 16\), got torch"):
            WRITERS[name](build("BasicCNN"), tmp_path / name, images=images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_export_names_the_command_for_a_missing_package(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CifarnetError, match=rf'{package}. Install it with: pip install "cifarnet\[onnx\]"'):
        export_onnx(build("BasicCNN"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(make_trainer: Callable[..., Trainer], synthetic: DatasetSplits, tmp_path: Path) -> Path:
    """Directory with a run, its exports, and a picture that the network predicts with high confidence."""
    trainer = make_trainer(precision="float32")
    trainer.fit(synthetic.train, max_epochs=5, batch_size=20, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    classifier = Classifier.load(tmp_path, device="cpu")
    for name, write in WRITERS.items():
        write(classifier, tmp_path / name)
    images = synthetic.test.images
    surest = library(classifier, images).amax(dim=1).argmax()
    Image.fromarray(images[surest].permute(1, 2, 0).numpy()).save(tmp_path / "cat.png")
    return tmp_path


def documented(title: str) -> str:
    """Return the Python block of a section of the how-to."""
    _, _, section = HOWTO.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    (block,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    return str(block)


def run_without_cifarnet(code: str, directory: Path) -> str:
    """Run a script in a process that cannot import the library."""
    (directory / "script.py").write_text(code)
    blocked = "import runpy, sys; sys.modules['cifarnet'] = None; runpy.run_path('script.py')"
    command = [sys.executable, "-I", "-W", "error", "-W", "ignore:The given buffer", "-c", blocked]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_documented_scripts_run_without_cifarnet(run: Path) -> None:
    with pytest.raises(AssertionError, match=r"import of cifarnet halted|No module named 'cifarnet'"):
        run_without_cifarnet("import cifarnet", run)
    prediction = Classifier.load(run, device="cpu").predict(run / "cat.png")
    turned = Image.open(run / "cat.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns the picture upright
    for _ in ("upright", "turned"):
        for title in ("ONNX, without cifarnet", "torch, without cifarnet"):
            label, _, probability = run_without_cifarnet(documented(title), run).strip().rpartition(" ")
            assert label == prediction.label
            assert float(probability) == pytest.approx(prediction.probability, abs=1e-4)
        turned.save(run / "cat.png", exif=exif)
    turned.resize((90, 70)).save(run / "cat.png")
    assert run_without_cifarnet(documented("ONNX, without cifarnet"), run)


def test_weights_load_with_safetensors_alone(run: Path) -> None:
    check = "\nimport numpy; numpy.savez('weights.npz', **weights)"
    out = run_without_cifarnet(documented("The weights alone") + check, run)
    classifier = Classifier.load(run, device="cpu")
    weights = classifier.model.state_dict()
    assert out == f"CifarCNN {sum(value.numel() for value in weights.values())} {list(classifier.classes)}\n"
    with np.load(run / "weights.npz") as arrays:
        assert set(arrays) == set(weights)
        assert all(np.array_equal(arrays[name], value.numpy()) for name, value in weights.items())
