"""Evaluation of a network on images that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images, Logits
from cifarnet.errors import InputError, SettingError
from cifarnet.inference.accumulator import EvaluationAccumulator
from cifarnet.inference.device import Precision
from cifarnet.inference.evaluation import Evaluation
from cifarnet.inference.iterable import check_labels
from cifarnet.inference.loader import Batch, EvaluationLoader
from cifarnet.inference.out_of_memory import out_of_memory_advice
from cifarnet.inference.running import MetricTotals, RunningMetrics
from cifarnet.models import evaluation_mode, unwrapped
from cifarnet.transforms import TTA, Preprocess, Transforms, average_logits

__all__ = ["check_logits", "check_model_fits", "check_sizes", "evaluate", "evaluate_loss", "predict_logits"]


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
        InputError: If it is ``None``.
    """
    if preprocess is None:
        raise InputError(
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
        InputError: If the images are too small for ``tta``, or are uint8 and ``preprocess`` is ``None``.
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
    remedy: str = "Build it for that size and those channels",
) -> int:
    """Predict one image and compare the number of logits with the number of classes.

    Args:
        model: Network on the device and in the dtype of ``precision``.
        images: One image, uint8 or preprocessed, shape ``(1, C, H, W)``.
        num_classes: Expected number of logits; ``None`` if it is unknown.
        name: Name of the images in error messages.
        preprocess: Preprocessing of the network; ``None`` if it is unknown.
        precision: Number format and device.
        remedy: Last sentence of the error if the network cannot take the image.

    Returns:
        Number of logits.

    Raises:
        DeviceMemoryError: If the network and one image do not fit into memory.
        SettingError: If the network cannot take the image, or returns another number of logits.
    """
    built = type(unwrapped(model)).__name__

    def explain() -> str:
        return (
            f"{built} and one image do not fit into the memory of {precision.device}. End other processes there, or "
            "use a smaller network"
        )

    try:
        with out_of_memory_advice(precision.device, explain), evaluation_mode(model):
            images = images.to(precision.device)
            logits: object = predict_logits(model, images, preprocess=preprocess, precision=precision)
    except SettingError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        is_ready = images.is_floating_point() or preprocess is None
        prepared = "" if is_ready else f", prepared to {check_preprocess(preprocess).size} pixels"
        raise SettingError(
            f"{built} cannot take the images of {name} ({tuple(images.shape[1:])}{prepared}): "
            f"{str(error).splitlines()[0].rstrip('.')}. {remedy}"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != 1 or num_classes not in (None, shape[1]):
        classes = "K" if num_classes is None else num_classes
        raise SettingError(
            f"{built} returns logits of shape {shape} for one image of {name}. The shape must be (1, {classes}). Build "
            f"it with num_classes={classes}"
        )
    return shape[1]


def check_sizes(model: nn.Module, images: Images, name: str, *, transforms: Transforms, precision: Precision) -> None:
    """Predict one image at each smaller size of progressive resizing.

    Args:
        model: Network on the device and in the dtype of ``precision``.
        images: One image, shape ``(1, C, H, W)``. A floating image is not checked, because it is never resized.
        name: Name of the images in error messages.
        transforms: Transforms of the training.
        precision: Number format and device.

    Raises:
        SettingError: If the network cannot take one of the sizes.
    """
    preprocess = transforms.preprocess
    for size in transforms.train_sizes:
        if size != preprocess.size and not images.is_floating_point():
            check_model_fits(
                model,
                images,
                None,
                name,
                preprocess=replace(preprocess, size=size),
                precision=precision,
                remedy="Leave out sizes=, or train a network that takes images of any size, such as FastCNN",
            )


@torch.no_grad()
def evaluate_loss(
    model: nn.Module,
    batches: EvaluationLoader,
    *,
    preprocess: Preprocess | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    precision: Precision,
    tta: TTA | None = None,
    observe: Callable[[Logits, Batch], None] | None = None,
) -> MetricTotals:
    """Evaluate loss and accuracy in eval mode. The mode of each module is restored afterwards.

    The loss is computed once for all images, because the mean of the batch losses is another value for many losses,
    such as one with class weights. The function synchronizes with the device once, at the end.

    Args:
        model: Network on the device and in the dtype of ``precision``.
        batches: Loader of every image once. uint8 images are preprocessed, floating images are used unchanged.
        preprocess: Preprocessing of the network; ``None`` if it is unknown.
        loss_fn: Loss ``(logits, labels) -> mean over the images``.
        precision: Number format and device.
        tta: Test-time augmentation; ``None`` predicts each image once.
        observe: Function that is called with the logits and the batch of every step.

    Returns:
        Running metrics of all images.

    Raises:
        DeviceMemoryError: If a batch does not fit into memory.
        InputError: If an external batch is invalid or has a label without a logit, if images are too small for
            ``tta``, or if they are uint8 and ``preprocess`` is ``None``.
        SettingError: If the model does not return a tensor.
    """
    all_logits: list[Logits] = []
    all_labels: list[Tensor] = []
    size = 0

    def explain() -> str:
        batch = f"A batch of {size} images" if size else "A batch"
        remedy = f"DataLoader(images, batch_size={size // 2})" if size > 1 else "smaller batches"
        return (
            f"{batch} does not fit into the memory of {precision.device} during evaluation. Evaluate {remedy}, because "
            "batch_size applies only to training"
        )

    # No autotuning: cuDNN could choose other kernels in another process, which could change a prediction.
    with (
        out_of_memory_advice(precision.device, explain),
        evaluation_mode(model),
        randomness.isolated(precision.device, autotune=False),
    ):

        def predict(batch: Batch) -> Logits:
            nonlocal size
            size = len(batch.labels)
            return predict_logits(model, batch.images, preprocess=preprocess, precision=precision, tta=tta)

        for step, batch in enumerate(batches.in_order()):
            logits = predict(batch)
            check_labels(batch, logits.shape[-1], step)
            all_logits.append(logits)
            all_labels.append(batch.labels)
            if observe is not None:
                observe(logits, batch)
        sums = RunningMetrics(precision.device)
        logits, labels = torch.cat(all_logits), torch.cat(all_labels)
        sums.add(loss_fn(logits, labels), logits, labels, 0)
    return sums.read()


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
        DeviceMemoryError: If a batch does not fit into memory.
        InputError: If `evaluate_loss` raises it, or if a label on another device than the CPU is outside ``[0, K)``.
        SettingError: If the model does not return a tensor, or ``temperature`` is outside `TEMPERATURE_RANGE`.
    """
    scores: list[EvaluationAccumulator] = []

    def observe(logits: Logits, batch: Batch) -> None:
        if not scores:  # the first logits show the number of classes
            scores.append(EvaluationAccumulator(logits.shape[1], precision.device, temperature=temperature))
        scores[0].add(logits, batch)

    totals = evaluate_loss(
        model,
        batches,
        preprocess=preprocess,
        loss_fn=loss_fn,
        precision=precision,
        tta=tta,
        observe=observe,
    )
    return scores[0].read(totals, classes=classes, tta=tta)
