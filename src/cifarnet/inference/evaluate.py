"""EvaluationAccumulator of a network on images that it does not learn from."""

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
    """Refuse an output of a model that is not a tensor.

    Raises:
        SettingError: Naming its type.
    """
    if not isinstance(output, Tensor):
        raise SettingError(
            f"The model returns a {type(output).__name__}, and loss_fn takes logits (N, K). Return the logits alone, "
            "such as output['logits'] or output.logits. Auxiliary logits are turned off by aux_logits=False"
        )
    return output


def check_preprocess(preprocess: Preprocess | None) -> Preprocess:
    """Refuse to guess the preprocessing of a model that was trained on floating batches.

    Raises:
        InputError: If it is unknown.
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
    """Score every class for a batch, as evaluation does it.

    Args:
        model: On the precision's device, in its dtype, in the mode that is wanted.
        images: uint8 is preprocessed, floating images are taken as they are; shape ``(N, C, H, W)``.
        preprocess: What the network needs.
        precision: Number format.
        tta: Test-time augmentation; ``None`` predicts each image once.

    Returns:
        Shape ``(N, K)``, in the dtype of the weights.

    Raises:
        InputError: If the images are too small for ``tta``.
    """

    def score(images: Images) -> Logits:
        with precision.autocast():
            output: object = model(precision.prepare(images))
        return check_logits(output).to(precision.weights)  # a loss, a probability or a mean from bf16 has 3 digits

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
    remedy: str = "build it for that size and those channels",
) -> int:
    """Send one image through a network, and compare its logits with the classes.

    Args:
        model: On the precision's device, in its dtype.
        images: One of them, uint8 or ready for the network, shape ``(1, C, H, W)``.
        num_classes: How many logits there should be; ``None`` where nobody knows.
        name: What messages call the images.
        preprocess: What the network needs.
        precision: Number format.
        remedy: What to do where the network cannot take the image.

    Returns:
        How many logits there are.

    Raises:
        DeviceMemoryError: If there is no room for network and image.
        SettingError: If the network cannot take the image, or does not give logits for as many classes.
    """
    built = type(unwrapped(model)).__name__

    def explain() -> str:
        return (
            f"{built} and one image did not fit into the memory of {precision.device}; end other processes there, or "
            "take a smaller network"
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
            f"{built} cannot take the images of {name} ({tuple(images.shape[1:])}{prepared}), or gives no "
            f"tensor: {str(error).splitlines()[0]}; {remedy}"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != 1 or num_classes not in (None, shape[1]):
        classes = "any" if num_classes is None else num_classes
        raise SettingError(
            f"{built} gives logits of shape {shape} for one image, and {name} has {classes} classes; build it with "
            f"num_classes={classes}"
        )
    return shape[1]


def check_sizes(model: nn.Module, images: Images, name: str, *, transforms: Transforms, precision: Precision) -> None:
    """Send one image through a network at each size below the full one that training has.

    Args:
        model: On the precision's device, in its dtype.
        images: One of them, uint8, shape ``(1, C, H, W)``; a floating one is trained on as it is.
        name: What messages call the images.
        transforms: Of the training.
        precision: Number format.

    Raises:
        SettingError: If the network cannot take one of them.
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
                remedy="leave sizes= out, or train a network that takes images of any size, such as FastCNN",
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
    """Evaluate loss and accuracy. The mode of each module is put back afterwards.

    The loss is computed once for all images, because the mean over batches is another value for many losses, such as
    one with class weights.

    Args:
        model: On the precision's device, in its dtype.
        batches: Every image once; uint8 is preprocessed, floating images are taken as they are.
        preprocess: What the network needs.
        loss_fn: ``(logits, labels) -> mean loss``.
        precision: Number format.
        tta: Test-time augmentation; ``None`` predicts each image once.
        observe: Is given the logits of every batch too.

    Returns:
        Sums over the images. It synchronizes with the device once, at the end.

    Raises:
        DeviceMemoryError: If a batch does not fit into memory.
        InputError: If a foreign batch is none, has a label that the network has no logit for, or is too small for
            ``tta``.
    """
    all_logits: list[Logits] = []
    all_labels: list[Tensor] = []
    size = 0

    def explain() -> str:
        remedy = f"DataLoader(images, batch_size={size // 2})" if size > 1 else "smaller batches"
        return (
            f"evaluating {size or 'some'} images at once did not fit into the memory of {precision.device}; evaluate "
            f"{remedy} instead, as batch_size is training's alone"
        )

    # cuDNN's timing of kernels could pick others in another process, and count an image otherwise.
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
    """All that there is to say of a network on some images; loss and accuracy are those of `evaluate_loss`.

    Args:
        model: See `evaluate_loss`, as of all others.
        batches: Every image once.
        preprocess: What the network needs.
        loss_fn: ``(logits, labels) -> mean loss``.
        precision: Number format.
        tta: Test-time augmentation.
        classes: Names of the classes, if they are known.
        temperature: What logits are divided by where they become probabilities.

    Returns:
        The evaluation.

    Raises:
        DeviceMemoryError: If a batch does not fit into memory.
        InputError: As `evaluate_loss` does, or if a batch on a device has a label of no class.
    """
    scores: list[EvaluationAccumulator] = []

    def observe(logits: Logits, batch: Batch) -> None:
        if not scores:  # how many classes there are is known by the first logits
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
