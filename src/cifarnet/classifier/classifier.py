"""Classifier: load, save, predict, evaluate, calibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from cifarnet._types import Images
from cifarnet._validation import check_count
from cifarnet.checkpoint import Checkpointer, load_best, load_weights
from cifarnet.checkpoint.state_dict import unwrapped_state_dict
from cifarnet.classifier.metadata import build_from_metadata, constructor_call, parse_metadata
from cifarnet.classifier.prediction import Prediction
from cifarnet.data import ImageDataset, ImageLike, resize_images, to_pixels
from cifarnet.data.dataset import check_classes
from cifarnet.errors import (
    CheckpointMismatchError,
    InputError,
    NonFiniteLogitsError,
    RunExistsError,
    SettingError,
)
from cifarnet.inference import (
    Evaluation,
    Precision,
    check_temperature,
    fit_temperature,
    predict_logits,
    resolve_device,
    resolve_precision,
)
from cifarnet.inference.data import Data, open_evaluation_loader
from cifarnet.inference.evaluate import check_model_fits, check_preprocess, evaluate, evaluate_loss
from cifarnet.inference.loader import EVAL_BATCH_SIZE, Batch
from cifarnet.models import describe_model, evaluation_mode, unwrapped
from cifarnet.transforms import TTA, Preprocess
from cifarnet.transforms.tta import check_tta

__all__ = ["Classifier"]


class Classifier:
    """Network in evaluation mode, with its preprocessing and class names.

    Args:
        model: Network from images ``(N, C, H, W)`` to logits ``(N, K)``. It is moved to the device in place.
        preprocess: Preprocessing that the network needs. ``None`` if it is unknown: floating images are evaluated, and
            uint8 images and files are refused.
        classes: The ``K`` class names in the order of the logits; empty if they are unknown.
        device: ``"auto"`` (CUDA if there is a GPU, else the CPU) or an argument of `torch.device`.
        precision: ``"auto"``, ``"bf16"``, ``"float32"`` or ``"float64"``; see `Trainer`.
        selected_by: Monitor, epoch and value that selected the weights.
        metadata: Plain values from the `Checkpointer`, such as the recipe.
        temperature: Divisor of the logits before the softmax. `calibrate` fits it.

    Attributes:
        model: Network, on its device, in evaluation mode.
        classes: Tuple of the class names; empty if they are unknown.
        device: A `torch.device`.
        precision: A `Precision`, with its name and the dtype of the weights.
        selected_by: Monitor, epoch and value that selected the weights; empty if they are unknown.
        metadata: Plain values from the `Checkpointer`.
        temperature: Divisor of the logits before the softmax.

    Raises:
        InputError: If ``classes`` is not a sequence of distinct, non-empty names.
        SettingError: If the network does not fit the preprocessed images or the number of classes, or the temperature
            is outside `TEMPERATURE_RANGE`.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess | None,
        classes: Sequence[str],
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        selected_by: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
    ) -> None:
        check_temperature(temperature)
        self.device = resolve_device(device)
        self.precision: Precision = resolve_precision(precision, self.device)
        self.model = model.to(self.device, self.precision.weights).to(memory_format=torch.channels_last).eval()
        self._preprocess = preprocess
        check_classes(classes)
        self.classes = tuple(classes)
        self.selected_by = dict(selected_by or {})
        self.metadata = dict(metadata or {})
        self.temperature = float(temperature)
        self._data: dict[str, Any] | None = None  # name, size and fingerprint of the training images
        if preprocess is not None:
            check_model_fits(
                self.model,
                torch.zeros(1, len(preprocess.mean), preprocess.size, preprocess.size, dtype=torch.uint8, device="cpu"),
                len(self.classes) or None,
                "the classifier",
                preprocess=preprocess,
                precision=self.precision,
            )

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing that the network needs. You may set it.

        Raises:
            InputError: If the network was trained on floating batches and their preprocessing was not passed.
        """
        return check_preprocess(self._preprocess)

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def __repr__(self) -> str:
        known = self._preprocess
        size = "unknown preprocessing" if known is None else f"{known.size}x{known.size} pixels"
        return (
            f"<Classifier: {type(unwrapped(self.model)).__name__}, {_some(self.classes)}, {size}, "
            f"{self.precision.name} on {self.device}>"
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module | None = None,
        *,
        preprocess: Preprocess | None = None,
        device: str | torch.device = "auto",
        precision: str | None = None,
    ) -> Classifier:
        """Load the best weights of a run, with their preprocessing and class names.

        Args:
            path: Directory of a run, or its ``best.safetensors``.
            model: Network that receives the weights. It is needed only if the network is not one of the library's.
            preprocess: Preprocessing of a run on floating batches, because its file has none; ``None`` uses that of the
                file.
            device: ``"auto"`` (CUDA if there is one, else the CPU) or an argument of `torch.device`.
            precision: Precision of the classifier; ``None`` uses that of the run and so reproduces its metrics.

        Returns:
            The classifier.

        Raises:
            CheckpointNotFoundError: If the file does not exist.
            CheckpointCorruptError: If the file is truncated, altered or not a checkpoint, or its weights do not fit the
                network that it describes. This check allocates no more memory than the size of the file.
            CheckpointMismatchError: If the weights do not fit ``model``, or the network does not fit preprocessing and
                classes.
            SettingError: If the device or the precision does not exist.
            UnsafeCheckpointError: If the file is a pickle.
        """
        resolved = resolve_device(device)
        if precision is not None:
            resolve_precision(precision, resolved)  # before the file is read
        weights, values = load_best(path)
        described = parse_metadata(values, name=str(path))
        preprocess = described.preprocess if preprocess is None else preprocess
        if model is None:
            model = build_from_metadata(described, preprocess, weights, str(path))
        model.to(resolve_precision(described.precision, torch.device("cpu")).weights)
        load_weights(model, weights, source=str(path), built_with=constructor_call(described))
        try:
            classifier = cls(
                model,
                preprocess,
                described.classes,
                device=resolved,
                precision=described.precision if precision is None else precision,
                selected_by=described.selected_by,
                metadata=described.metadata,
                temperature=described.temperature,
            )
        except (SettingError, InputError) as error:
            raise CheckpointMismatchError(f"{path}: {error}") from error
        classifier._data = described.data
        return classifier

    def save(self, directory: str | Path) -> Path:
        """Write a ``best.safetensors`` from which `load` builds the same classifier, with its temperature.

        Args:
            directory: Directory of the file, created if it does not exist. If it holds a ``best.safetensors`` already,
                the weights in it must be equal.

        Returns:
            Path of the file.

        Raises:
            RunExistsError: If the directory holds a run with other weights.
            RunDirectoryBusyError: If another process is training in the directory.
            CheckpointError: If the present file cannot be read, or the new one cannot be written.
        """
        checkpointer = Checkpointer(directory)
        weights = {name: tensor.cpu() for name, tensor in unwrapped_state_dict(self.model).items()}
        description = {
            "model": describe_model(self.model),
            "preprocess": None if self._preprocess is None else asdict(self._preprocess),
            "classes": list(self.classes),
            "precision": self.precision.name,
            "selected_by": {"monitor": "unknown", "epoch": 0, "value": None, **self.selected_by},
            "data": self._data,
            "metadata": self.metadata,
            **({} if self.temperature == 1 else {"temperature": self.temperature}),
        }
        parse_metadata(description, name="the classifier")  # `load` must accept it
        with checkpointer:
            if checkpointer.best_path.exists() and not _are_equal(checkpointer.read_best()[0], weights):
                raise RunExistsError(
                    f"{checkpointer.directory} holds a run with other weights, or in another precision. Save to "
                    "another directory"
                )
            return checkpointer.save_best(weights, description)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is one path, and also a sequence of str
        self, images: ImageLike, *, top_k: int = 5, tta: TTA | None = None
    ) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[ImageLike], *, top_k: int = 5, tta: TTA | None = None) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, top_k: int = 5, tta: TTA | None = None
    ) -> Prediction | list[Prediction]:
        """Predict the class of an image, or of each image of a list.

        An image may have any size. It is cropped to the square in its centre and resized, as in training. Colour modes,
        transparency, channel orders, ranges and devices are converted, see `cifarnet.data.to_pixels`.

        Args:
            images: Path, bytes of a picture file, open binary file, Pillow image, array or tensor, or a list of them.
                Arrays and tensors are uint8, or floating in ``[0, 1]`` and not normalised; their shape is
                ``(H, W, C)``, ``(C, H, W)`` or ``(H, W)``.
            top_k: Largest number of classes in the prediction.
            tta: Test-time augmentation; ``None`` predicts each image once.

        Returns:
            A prediction, or a list of predictions for a list of images.

        Raises:
            InputError: If a value is not such an image.
            SettingError: If ``top_k`` is below 1, or ``tta`` is unknown.
            NonFiniteLogitsError: If the network returns NaN or infinity.

        Example:
            >>> from cifarnet import CifarCNN, Preprocess
            >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
            >>> classifier.predict(torch.zeros(3, 480, 640)).label in ("cat", "dog")
            True
        """
        check_count("top_k", top_k, "5 is the default")
        check_tta(tta)
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            predictions: list[Prediction] = []
            for start in range(0, len(images), EVAL_BATCH_SIZE):
                predictions += self._predict(images[start : start + EVAL_BATCH_SIZE], top_k, tta, start)
            return predictions
        return self._predict([images], top_k, tta)[0]

    @torch.no_grad()
    def _predict(
        self, images: Sequence[ImageLike], top_k: int, tta: TTA | None, start: int | None = None
    ) -> list[Prediction]:
        """Predict a batch. ``start`` is the index of its first image in the list of the caller."""
        pixels = [self._to_pixels(image, None if start is None else start + i) for i, image in enumerate(images)]
        with evaluation_mode(self.model):
            batch = torch.stack(pixels).to(self.device)  # (N, C, size, size)
            logits = predict_logits(self.model, batch, preprocess=self.preprocess, precision=self.precision, tta=tta)
        logits = logits.cpu().double()
        if not bool(logits.isfinite().all()):
            raise NonFiniteLogitsError(
                f"The network returns NaN or infinity in {self.precision.name}. Check that its weights are finite, or "
                'use precision="float32"'
            )
        # A stable sort of the logits: the first of equal classes wins, as in `evaluate`, at any temperature.
        classes = logits.sort(dim=1, descending=True, stable=True).indices
        ranked = (logits / self.temperature).softmax(dim=1).gather(1, classes)
        predictions = []
        for row, order in zip(ranked.tolist(), classes.tolist(), strict=True):
            top = tuple((self.class_name(i), p) for i, p in zip(order[:top_k], row[:top_k], strict=True))
            predictions.append(Prediction(*top[0], top))
        return predictions

    def to_pixels(self, images: ImageLike | Sequence[ImageLike]) -> Images:
        """Crop images to a square, resize them for the network and stack them, without normalising them.

        Args:
            images: An image that `predict` accepts, or a list of such images.

        Returns:
            Images on the CPU, uint8, shape ``(N, C, size, size)``; ``N`` is 1 for one image.

        Raises:
            InputError: If a value is not an image, or the list is empty.

        Example:
            >>> from cifarnet import CifarCNN, Preprocess
            >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
            >>> classifier.to_pixels([torch.zeros(3, 480, 640), torch.zeros(3, 32, 32)]).shape
            torch.Size([2, 3, 32, 32])
        """
        if isinstance(images, str | bytes) or not isinstance(images, Sequence):
            return self._to_pixels(images, None)[None]
        if not images:
            raise InputError("There are no images. Pass at least one")
        return torch.stack([self._to_pixels(image, i) for i, image in enumerate(images)])  # type: ignore[arg-type]  # mypy takes a memoryview for bytes

    def _to_pixels(self, image: ImageLike, position: int | None) -> Tensor:
        """Convert one image to uint8 of the network's size, shape ``(C, size, size)``."""
        try:
            return resize_images(to_pixels(image, channels=len(self.preprocess.mean)), self.preprocess.size)
        except InputError as error:
            if position is None or isinstance(image, str | Path):  # the error names the file
                raise
            raise InputError(f"Image {position} of the list: {error}") from error

    def class_name(self, index: int) -> str:
        """Return the name of a class, or ``class 3`` if the names are unknown.

        Args:
            index: Index of the logit, from 0.
        """
        return self.classes[index] if self.classes else f"class {index}"

    def check_classes(self, data: ImageDataset) -> None:
        """Refuse labelled images whose classes are not those of the network.

        Args:
            data: Labelled images.

        Raises:
            InputError: If the classes differ.
            SettingError: If the class names of the network are unknown, and its number of logits is not the number of
                classes of ``data``.
        """
        if self.classes and data.classes != self.classes:
            raise InputError(
                f"The network predicts {_some(self.classes)}, and the images have {_some(data.classes)}. Use images "
                "with the classes of the training"
            )
        if not self.classes:  # on CUDA, a label without a logit breaks the process
            check_model_fits(
                self.model,
                data.images[:1],
                len(data.classes),
                data.name,
                preprocess=self.preprocess,
                precision=self.precision,
            )

    def evaluate(self, data: Data, *, tta: TTA | None = None) -> Evaluation:
        """Evaluate the network on labelled images.

        Args:
            data: An `ImageDataset` with the same classes, or an iterable of ``(images, labels)`` batches.
            tta: Test-time augmentation; ``None`` predicts each image once.

        Returns:
            All metrics, and the test-time augmentation. The loss is cross-entropy, also if the network was trained
            with another one. The temperature of `calibrate` applies to probabilities and to metrics of them.

        Raises:
            InputError: If the classes differ.
            SettingError: If ``tta`` is unknown.
        """
        check_tta(tta)
        if isinstance(data, ImageDataset):
            check_preprocess(self._preprocess)
            self.check_classes(data)
        return evaluate(
            self.model,
            open_evaluation_loader(data, self.device),
            preprocess=self._preprocess,
            loss_fn=nn.functional.cross_entropy,
            precision=self.precision,
            tta=tta,
            classes=self.classes or (data.classes if isinstance(data, ImageDataset) else ()),
            temperature=self.temperature,
        )

    def calibrate(self, val: Data, *, tta: TTA | None = None) -> float:
        """Fit the temperature to validation images, and use it for all later probabilities.

        Temperature scaling does not change the predicted class, so accuracy is unchanged. `save` stores it.

        Args:
            val: Validation images with the same classes, which the network was not trained on. If you pass the test
                images, the test metrics of the probabilities become too good.
            tta: Test-time augmentation of later predictions. A temperature is valid only for the ``tta`` that it was
                fitted with, because averaged logits are less confident.

        Returns:
            The temperature, see `fit_temperature`.

        Raises:
            InputError: If the classes differ, or no temperature is the best, because the network is right about all
                images or no better than guessing.
            NonFiniteLogitsError: If the network returns NaN or infinity.
            SettingError: If ``tta`` is unknown.
        """
        check_tta(tta)
        if isinstance(val, ImageDataset):
            self.check_classes(val)
        logits: list[Tensor] = []
        labels: list[Tensor] = []

        def observe(batch_logits: Tensor, batch: Batch) -> None:
            logits.append(batch_logits)
            labels.append(batch.labels)

        evaluate_loss(
            self.model,
            open_evaluation_loader(val, self.device),
            preprocess=self._preprocess,
            loss_fn=nn.functional.cross_entropy,
            precision=self.precision,
            tta=tta,
            observe=observe,
        )
        self.temperature = fit_temperature(torch.cat(logits), torch.cat(labels))
        return self.temperature


def _are_equal(saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether two networks have equal weights of equal dtypes."""
    return saved.keys() == weights.keys() and all(
        saved[name].dtype == tensor.dtype and torch.equal(saved[name], tensor) for name, tensor in weights.items()
    )


def _some(classes: tuple[str, ...]) -> str:
    if not classes:
        return "unnamed classes"
    names = ", ".join(classes[:3])
    return f"{len(classes)} classes ({names}, ...)" if len(classes) > 3 else f"{len(classes)} classes ({names})"
