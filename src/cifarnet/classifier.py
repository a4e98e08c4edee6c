"""A trained network together with all that is needed to use it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarnet.checkpoint import load_best, load_weights
from cifarnet.datasets import ImageDataset
from cifarnet.engine import Precision, evaluate, resolve_device, resolve_precision
from cifarnet.errors import CheckpointCorruptError, CheckpointMismatchError, InputError
from cifarnet.metrics import Evaluation
from cifarnet.models import build_model
from cifarnet.randomness import isolated
from cifarnet.trainer.plan import Data, open_for_evaluation
from cifarnet.transforms import Preprocess

__all__ = ["Classifier"]


class Classifier:
    """Weights, preprocessing and class names that belong together; always in evaluation mode.

    Args:
        model: Images ``(N, C, H, W)`` to logits ``(N, K)``; moved to the device in place.
        preprocess: What the network needs.
        classes: The ``K`` class names in the order of the logits; none where nobody knew them.
        device: ``"auto"`` (CUDA where there is one, else the CPU) or what `torch.device` takes.
        precision: ``"auto"``, ``"bf16"``, ``"float32"`` or ``"float64"``; see `Trainer`.
        selected_by: How the weights were chosen: monitor, epoch, value.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        classes: Iterable[str],
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        selected_by: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.precision: Precision = resolve_precision(precision, self.device)
        self.model = model.to(self.device, self.precision.weights).to(memory_format=torch.channels_last).eval()
        self.preprocess = preprocess
        self.classes = tuple(classes)
        self.selected_by = dict(selected_by or {})

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module | None = None,
        *,
        device: str | torch.device = "auto",
        precision: str | None = None,
    ) -> Classifier:
        """Load the best weights of a run, with their preprocessing and class names.

        Args:
            path: A run's directory, or a ``best.safetensors``.
            model: The network to load them into; needed only for one that is not the library's.
            device: See the class.
            precision: ``None`` takes that of the run, so that its numbers come out again.

        Returns:
            The classifier.

        Raises:
            CheckpointNotFoundError: If there is no such file.
            CheckpointCorruptError: If it is truncated, altered or no checkpoint.
            CheckpointMismatchError: If its weights do not fit ``model``.
            UnsafeCheckpointError: If it is a pickle.
        """
        weights, description = load_best(path)
        try:
            architecture = description["model"]
            preprocess = Preprocess(
                description["preprocess"]["size"],
                tuple(description["preprocess"]["mean"]),
                tuple(description["preprocess"]["std"]),
            )
            classes = description["classes"]
            trained_in = description["precision"]
            selected_by = description["selected_by"]
        except (KeyError, TypeError) as error:
            raise CheckpointCorruptError(f"{path} does not describe its weights: {error!r} is missing") from error
        if model is None:
            if architecture["arguments"] is None:
                raise CheckpointMismatchError(
                    f"{path} holds a {architecture['name']}, which is not one of the library's networks; build it and "
                    "give it as model="
                )
            with isolated(torch.device("cpu")):  # its first weights are drawn, and then replaced
                model = build_model(architecture["name"], architecture["arguments"])
        model.to(resolve_precision(trained_in, torch.device("cpu")).weights)
        load_weights(model, weights, source=str(path), built_with=_constructor_call(architecture))
        return cls(
            model,
            preprocess,
            classes,
            device=device,
            precision=trained_in if precision is None else precision,
            selected_by=selected_by,
        )

    def evaluate(self, data: Data) -> Evaluation:
        """Score the network on labelled images.

        Args:
            data: An `ImageDataset` with the same classes, or an iterable of ``(images, labels)`` batches.

        Returns:
            Accuracy and cross-entropy, whatever loss the network was trained with.

        Raises:
            InputError: If the classes differ.
        """
        if isinstance(data, ImageDataset) and self.classes and data.classes != self.classes:
            raise InputError(
                f"the network tells {_some(self.classes)} apart, the images are {_some(data.classes)}; evaluate on "
                "data with the classes it was trained on"
            )
        return evaluate(
            self.model,
            open_for_evaluation(data, self.device),
            preprocess=self.preprocess,
            loss_fn=nn.functional.cross_entropy,
            precision=self.precision,
        )


def _constructor_call(architecture: Mapping[str, Any]) -> str:
    """``CifarCNN(num_classes=10, ...)``, as it stands in code."""
    arguments = architecture["arguments"] or {}
    return f"{architecture['name']}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _some(classes: tuple[str, ...]) -> str:
    names = ", ".join(classes[:3])
    return f"{len(classes)} classes ({names}, ...)" if len(classes) > 3 else f"{len(classes)} classes ({names})"
