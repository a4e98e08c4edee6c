"""Classifier: load, save, predict, evaluate, calibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from cifarnet._types import Images, Logits
from cifarnet._validation import check_count
from cifarnet.classifier.network_file import blank_image, load_classifier, save_classifier
from cifarnet.classifier.prediction import Prediction, is_list, load_batches, rank_classes
from cifarnet.data import ImageDataset, ImageLike
from cifarnet.data.dataset import check_classes
from cifarnet.errors import DataError, NonFiniteError
from cifarnet.inference import Evaluation, fit_temperature, predict_logits, resolve_device, resolve_precision
from cifarnet.inference.calibration import check_temperature
from cifarnet.inference.evaluate import check_model_fits, check_preprocess, evaluate, predict_batches
from cifarnet.inference.open_data import Data, open_evaluation_loader
from cifarnet.models._modules import evaluation_mode, unwrapped
from cifarnet.transforms import TTA, Preprocess
from cifarnet.transforms.tta import check_tta

__all__ = ["Classifier"]


class Classifier:
    """Network in evaluation mode, with its preprocessing and class names.

    The arguments are attributes, too. ``device`` is a `torch.device`, and ``precision`` a `Precision`.

    Args:
        model: Network from images ``(N, C, H, W)`` to logits ``(N, K)``. It is moved to the device in place.
        preprocess: Preprocessing that the network needs. ``None`` if it is unknown: floating images are evaluated, and
            uint8 images and files are refused.
        classes: The ``K`` class names in the order of the logits; empty if they are unknown.
        device: ``"auto"`` (CUDA if there is a GPU, else the CPU) or an argument of `torch.device`.
        precision: ``"auto"``, ``"bf16"``, ``"float32"`` or ``"float64"``; see `Trainer`.
        selected_by: Monitor, epoch and value that selected the weights; empty if they are unknown.
        metadata: Plain values from the `Checkpointer`, such as the recipe.
        temperature: Divisor of the logits before the softmax. `calibrate` fits it.

    Raises:
        DataError: If ``classes`` is not a sequence of distinct, non-empty names.
        SettingError: If the network does not fit the preprocessed images or the number of classes, or the temperature
            is outside ``[0.001, 1000]``.
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
        check_classes(classes)
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.model = model.to(self.device, self.precision.weights).to(memory_format=torch.channels_last).eval()
        self._preprocess = preprocess
        self.classes = tuple(classes)
        self.selected_by = dict(selected_by or {})
        self.metadata = dict(metadata or {})
        self.temperature = float(temperature)
        self._data: dict[str, Any] | None = None  # name, size and fingerprint of the training images
        if preprocess is not None:
            self._check_model(blank_image(preprocess), len(self.classes) or None, "the classifier")

    def _check_model(self, image: Images, num_classes: int | None, name: str) -> None:
        check_model_fits(self.model, image, num_classes, name, preprocess=self._preprocess, precision=self.precision)

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing that the network needs. You may set it. If it is unknown, reading it raises `DataError`."""
        return check_preprocess(self._preprocess)

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess

    def __repr__(self) -> str:
        known = self._preprocess
        size = "unknown preprocessing" if known is None else f"{known.size}x{known.size} pixels"
        network = type(unwrapped(self.model)).__name__
        return f"<Classifier: {network}, {_some(self.classes)}, {size}, {self.precision.name} on {self.device}>"

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

        Raises:
            CheckpointNotFoundError: If the file does not exist.
            CheckpointCorruptError: If the file is damaged, or its weights do not fit the network that it describes.
                This check allocates no more memory than the size of the file.
            CheckpointMismatchError: If weights and ``model``, or network and preprocessing or classes do not fit.
            SettingError: If the device or the precision does not exist.
            CheckpointError: If the file is a pickle.
        """
        return load_classifier(cls, path, model, preprocess=preprocess, device=device, precision=precision)

    def save(self, directory: str | Path) -> Path:
        """Write a ``best.safetensors`` from which `load` builds the same classifier, and return its path.

        Args:
            directory: Directory of the file, created if it does not exist. If it holds a ``best.safetensors`` already,
                the weights in it must be equal.

        Raises:
            CheckpointError: If the directory holds a run with other weights, another process is training there, the
                present file cannot be read, or the new one cannot be written.
        """
        return save_classifier(self, directory)

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

        An image of any size and colour mode is converted as in training, see `cifarnet.data.to_pixels`.

        Args:
            images: Path, bytes of a picture file, open binary file, Pillow image, array or tensor, or a list of them.
                Arrays and tensors are uint8, or floating in ``[0, 1]`` and not normalised; their shape is
                ``(H, W, C)``, ``(C, H, W)`` or ``(H, W)``.
            top_k: Largest number of classes in the prediction.
            tta: Test-time augmentation; ``None`` predicts each image once.

        Raises:
            DataError: If a value is not such an image.
            SettingError: If ``top_k`` is below 1, or ``tta`` is unknown.
            NonFiniteError: If the network returns NaN or infinity.

        Example:
            >>> from cifarnet import CifarCNN, Preprocess
            >>> classifier = Classifier(CifarCNN(num_classes=2), Preprocess(), ("cat", "dog"))
            >>> classifier.predict(torch.zeros(3, 480, 640)).label in ("cat", "dog")
            True
        """
        check_count("top_k", top_k, "5 is the default")
        check_tta(tta)
        predictions: list[Prediction] = []
        for batch in load_batches(images, self.preprocess):
            logits = self._predict_logits(batch, tta)
            predictions += rank_classes(logits, self.temperature, top_k, self.class_name)
        return predictions if is_list(images) else predictions[0]

    @torch.no_grad()
    def _predict_logits(self, images: Images, tta: TTA | None) -> Logits:
        """Return the logits of a batch as float64 on the CPU."""
        with evaluation_mode(self.model):
            images = images.to(self.device)
            logits = predict_logits(self.model, images, preprocess=self.preprocess, precision=self.precision, tta=tta)
        logits = logits.cpu().double()
        if not bool(logits.isfinite().all()):
            raise NonFiniteError(
                f"The network returns NaN or infinity in {self.precision.name}. Check that its weights are finite, or "
                'use precision="float32"'
            )
        return logits

    def to_pixels(self, images: ImageLike | Sequence[ImageLike]) -> Images:
        """Return images as the network sees them, uint8 on the CPU, shape ``(N, C, size, size)``, not normalised.

        Args:
            images: An image that `predict` accepts, or a list of such images.

        Raises:
            DataError: If a value is not an image, or the list is empty.
        """
        batches = list(load_batches(images, self.preprocess))
        if not batches:
            raise DataError("There are no images. Pass at least one")
        return torch.cat(batches)

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
            DataError: If the classes differ, or the preprocessing of the network is unknown.
            SettingError: If the class names are unknown, and ``data`` has another number of classes.
        """
        check_preprocess(self._preprocess)
        if not self.classes:  # on CUDA, a label without a logit breaks the process
            self._check_model(data.images[:1], len(data.classes), data.name)
        elif data.classes != self.classes:
            raise DataError(
                f"The network predicts {_some(self.classes)}, and the images have {_some(data.classes)}. Use images "
                "with the classes of the training"
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
            DataError: If the classes differ.
            SettingError: If ``tta`` is unknown.
        """
        check_tta(tta)
        classes = self.classes
        if isinstance(data, ImageDataset):
            self.check_classes(data)
            classes = data.classes
        return evaluate(
            self.model,
            open_evaluation_loader(data, self.device),
            preprocess=self._preprocess,
            loss_fn=nn.functional.cross_entropy,
            precision=self.precision,
            tta=tta,
            classes=classes,
            temperature=self.temperature,
        )

    def calibrate(self, val: Data, *, tta: TTA | None = None) -> float:
        """Fit the temperature to validation images by `fit_temperature`, use it from now on, and return it.

        Temperature scaling does not change the predicted class, so accuracy is unchanged. `save` stores it.

        Args:
            val: Validation images with the same classes, which the network was not trained on. If you pass the test
                images, the test metrics of the probabilities become too good.
            tta: Test-time augmentation of later predictions. A temperature is valid only for the ``tta`` that it was
                fitted with, because averaged logits are less confident.

        Raises:
            DataError: If the classes differ, or `fit_temperature` finds no best temperature.
            NonFiniteError: If the network returns NaN or infinity.
            SettingError: If ``tta`` is unknown.
        """
        check_tta(tta)
        if isinstance(val, ImageDataset):
            self.check_classes(val)
        batches = open_evaluation_loader(val, self.device).in_order()
        predictions = predict_batches(
            self.model, batches, preprocess=self._preprocess, precision=self.precision, tta=tta
        )
        self.temperature = fit_temperature(torch.cat(predictions.logits), torch.cat(predictions.labels))
        return self.temperature


def _some(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes ({shown})" if classes else "unnamed classes"
