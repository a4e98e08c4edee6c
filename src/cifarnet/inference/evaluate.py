"""Evaluation of a network on images that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images, Logits
from cifarnet.errors import DataError, SettingError
from cifarnet.inference.device import Precision, out_of_memory_advice
from cifarnet.inference.evaluation import Evaluation
from cifarnet.inference.loader import Batch, EvaluationLoader, check_labels
from cifarnet.inference.metrics import MetricTotals, RunningMetrics
from cifarnet.inference.summarize import Predictions, summarize_predictions
from cifarnet.models._modules import evaluation_mode, unwrapped
from cifarnet.transforms import TTA, Preprocess
from cifarnet.transforms.tta import average_logits, check_tta

__all__ = [
    "check_logits",
    "check_model_fits",
    "check_preprocess",
    "evaluate",
    "evaluate_loss",
    "predict_batches",
    "predict_logits",
]


def check_logits(output: object) -> Logits:
    """Return the output of a model if it is a tensor.

    Args:
        output: Any output of a model.

    Raises:
        SettingError: If it is not a tensor.
    """
    if not isinstance(output, Tensor):
        raise SettingError(
            f"The model returns a {type(output).__name__}, and loss_fn takes logits (N, K). Return the logits alone, "
            "such as output['logits'] or output.logits. Auxiliary logits are turned off by aux_logits=False"
        )
    return output


def check_preprocess(preprocess: Preprocess | None) -> Preprocess:
    """Return the preprocessing if it is known.

    Args:
        preprocess: Preprocessing of a model; ``None`` if the model was trained on floating batches.

    Raises:
        DataError: If it is ``None``.
    """
    if preprocess is None:
        raise DataError(
            "The model was trained on floating batches, and their preprocessing is unknown. Pass it: "
            "Classifier.load(path, preprocess=Preprocess(size, mean, std)) or Trainer(transforms=build_transforms(...))"
        )
    return preprocess


def predict_logits(
    model: nn.Module, images: Images, *, preprocess: Preprocess | None, precision: Precision, tta: TTA | None = None
) -> Logits:
    """Return the logits of a batch. Evaluation, the classifier, export and explanations use this function.

    Args:
        model: Network on the device and in the dtype of ``precision``. Its mode, train or eval, is kept.
        images: Images, shape ``(N, C, H, W)``. uint8 images are preprocessed, floating images are used unchanged.
        preprocess: Preprocessing of the network; ``None`` if it is unknown.
        precision: Number format and device.
        tta: Test-time augmentation; ``None`` predicts each image once.

    Returns:
        Logits, shape ``(N, K)``, in the dtype of the weights.

    Raises:
        DataError: If the images are too small for ``tta``, or are uint8 and ``preprocess`` is ``None``.
        SettingError: If the model does not return a tensor.
    """

    def score(images: Images) -> Logits:
        with precision.autocast():
            output: object = model(precision.prepare(images))
        return check_logits(output).to(precision.weights)  # a loss or mean in bf16 has 3 digits

    images = precision.prepare(images if images.is_floating_point() else check_preprocess(preprocess)(images))
    return score(images) if tta is None else average_logits(score, images, tta)


@torch.no_grad()
def check_model_fits(
    model: nn.Module,
    images: Images,
    num_classes: int | None,
    name: str,
    *,
    preprocess: Preprocess | None,
    precision: Precision,
) -> int:
    """Predict one image and compare the number of logits with the number of classes.

    Args:
        model: Network on the device and in the dtype of ``precision``.
        images: One image, uint8 or preprocessed, shape ``(1, C, H, W)``.
        num_classes: Expected number of logits; ``None`` if it is unknown.
        name: Name of the images in error messages.
        preprocess: Preprocessing of the network; ``None`` if it is unknown.
        precision: Number format and device.

    Returns:
        Number of logits.

    Raises:
        DeviceMemoryError: If the network and one image do not fit into memory.
        DataError: If the image is uint8 and ``preprocess`` is ``None``.
        SettingError: If the network cannot take the image, or returns another number of logits.
    """
    built = type(unwrapped(model)).__name__
    prepared = "" if images.is_floating_point() else f", prepared to {check_preprocess(preprocess).size} pixels"

    def explain() -> str:
        return (
            f"{built} and one image do not fit into the memory of {precision.device}. End other processes there, or "
            "use a smaller network"
        )

    try:
        with out_of_memory_advice(precision.device, explain), evaluation_mode(model):
            images = images.to(precision.device)
            logits = predict_logits(model, images, preprocess=preprocess, precision=precision)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(
            f"{built} cannot take the images of {name} ({tuple(images.shape[1:])}{prepared}): "
            f"{str(error).splitlines()[0].rstrip('.')}. Build it for that size and those channels"
        ) from error
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] != 1 or num_classes not in (None, shape[1]):
        classes = "K" if num_classes is None else num_classes
        raise SettingError(
            f"{built} returns logits of shape {shape} for one image of {name}. The shape must be (1, {classes}). Build "
            f"it with num_classes={classes}"
        )
    return shape[1]


@torch.no_grad()
def predict_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    preprocess: Preprocess | None,
    precision: Precision,
    tta: TTA | None = None,
) -> Predictions:
    """Predict every image in eval mode. The mode of each module is restored afterwards.

    Args:
        model: Network on the device and in the dtype of ``precision``.
        batches: Batches on the device. uint8 images are preprocessed, floating images are used unchanged.
        preprocess: Preprocessing of the network; ``None`` if it is unknown.
        precision: Number format and device.
        tta: Test-time augmentation; ``None`` predicts each image once.

    Returns:
        Logits, labels and ids of all images, on the device.

    Raises:
        DeviceMemoryError: If a batch does not fit into memory.
        DataError: If an external batch is invalid or has a label without a logit, if images are too small for
            ``tta``, or if they are uint8 and ``preprocess`` is ``None``.
        SettingError: If the model does not return a tensor.
    """
    predictions = Predictions([], [], [])
    size = 0

    def explain() -> str:
        remedy = f"DataLoader(images, batch_size={size // 2})" if size > 1 else "smaller batches"
        return (
            f"A batch of {size} images does not fit into the memory of {precision.device} during evaluation. Evaluate "
            f"{remedy}, because batch_size applies only to training"
        )

    with out_of_memory_advice(precision.device, explain), _evaluation(model, precision):
        for step, batch in enumerate(batches):
            size = len(batch.labels)
            logits = predict_logits(model, batch.images, preprocess=preprocess, precision=precision, tta=tta)
            check_labels(batch, logits.shape[-1], step)
            predictions.logits.append(logits)
            predictions.labels.append(batch.labels)
            predictions.ids.append(batch.ids)
    return predictions


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, predictions: Predictions, *, loss_fn: Callable[[Tensor, Tensor], Tensor], precision: Precision
) -> MetricTotals:
    """Compute loss and accuracy of predictions. The function synchronizes with the device once, at the end.

    The loss is computed once for all images, because the mean of the batch losses is another value for many losses,
    such as one with class weights.

    Args:
        model: Network of the predictions, which is in eval mode during the loss, because the loss may call it.
        predictions: Predictions of all images.
        loss_fn: Loss ``(logits, labels) -> mean over the images``.
        precision: Number format and device.

    Returns:
        Running metrics of all images.

    Raises:
        DeviceMemoryError: If the loss does not fit into memory.
    """

    def explain() -> str:
        return (
            f"The loss of {sum(map(len, predictions.labels)):,} images does not fit into the memory of "
            f"{precision.device}. Evaluate fewer images"
        )

    metrics = RunningMetrics(precision.device)
    with out_of_memory_advice(precision.device, explain), _evaluation(model, precision):
        logits, labels = torch.cat(predictions.logits), torch.cat(predictions.labels)
        metrics.add(loss_fn(logits, labels), logits, labels, 0)
    return metrics.read()


@contextmanager
def _evaluation(model: nn.Module, precision: Precision) -> Iterator[None]:
    # No autotuning: cuDNN could choose other kernels in another process, which could change a prediction.
    with evaluation_mode(model), randomness.isolated(precision.device, autotune=False):
        yield


def evaluate(
    model: nn.Module,
    batches: EvaluationLoader,
    *,
    preprocess: Preprocess | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    precision: Precision,
    tta: TTA | None = None,
    classes: Sequence[str] = (),
    temperature: float = 1.0,
) -> Evaluation:
    """Compute all metrics of a network. Loss and accuracy equal those of `evaluate_loss`.

    Args:
        model: Network on the device and in the dtype of ``precision``.
        batches: Loader of every image once. uint8 images are preprocessed, floating images are used unchanged.
        preprocess: Preprocessing of the network; ``None`` if it is unknown.
        loss_fn: Loss ``(logits, labels) -> mean over the images``.
        precision: Number format and device.
        tta: Test-time augmentation; ``None`` predicts each image once.
        classes: Class names; empty if they are unknown.
        temperature: Divisor of the logits before the softmax.

    Returns:
        The evaluation.

    Raises:
        DeviceMemoryError: If a batch or the loss does not fit into memory.
        DataError: If `predict_batches` raises it, or if a label on another device than the CPU is outside ``[0, K)``.
        SettingError: If ``tta`` is unknown, the model returns no tensor, or ``temperature`` is outside its range.
    """
    check_tta(tta)
    predictions = predict_batches(model, batches.in_order(), preprocess=preprocess, precision=precision, tta=tta)
    totals = evaluate_loss(model, predictions, loss_fn=loss_fn, precision=precision)
    return summarize_predictions(predictions, loss=totals.mean_loss, classes=classes, temperature=temperature, tta=tta)
