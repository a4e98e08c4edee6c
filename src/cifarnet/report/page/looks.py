"""The parts of a page that show images, and what the network makes of them."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from cifarnet import randomness
from cifarnet.errors import InputError
from cifarnet.report.page.markup import Markup, element, join, name, table
from cifarnet.report.page.section import Judged, figure
from cifarnet.report.page.wording import count, number, percent

__all__ = ["feature_maps", "filters", "grad_cam", "network", "predictions", "top_losses"]

_NUM_EXPLAINED = 6  # images, the first of the sample predictions


def top_losses(judged: Judged) -> Markup:
    """The images that the network is most wrong about."""
    from cifarnet.visualize import plot_top_losses

    scores = judged.evaluation
    if not scores.top_losses:
        raise InputError("there is no image that the network is wrong about")
    first = scores.top_losses[0]
    alt = (
        f"The test images with the highest loss. The highest, {number(first.loss, 2)}: image {first.index}, "
        f"{scores.class_name(first.label)}, taken for {scores.class_name(first.predicted)} with a probability of "
        f"{percent(first.probability, 1)}. The table has them all."
    )
    rows = [
        (
            count(one.index),
            name(scores.class_name(one.label)),
            name(scores.class_name(one.predicted)),
            percent(one.probability, 1),
            number(one.loss, 2),
        )
        for one in scores.top_losses
    ]
    head = ("test image", "class", "taken for", "probability", "log loss")
    listed = table(f"The {len(rows)} highest losses", head, rows, texts=(1, 2), id_="losses-table")
    shown = figure(
        partial(plot_top_losses, scores, judged.test),
        "The images with the highest loss: taken for something else, or right and unsure. Look at the labels too: one "
        "may be wrong.",
        alt=alt,
    )
    return join([shown, element("details", element("summary", "The same as a table"), listed)])


def predictions(judged: Judged) -> Markup:
    """A random choice of test images."""
    from cifarnet.visualize import plot_predictions

    chosen = _chosen(judged, 9)
    told = judged.run.classifier.predict(list(judged.test.images[chosen]), top_k=1)
    names = [judged.run.classifier.class_name(label) for label in judged.test.labels[chosen].tolist()]
    right = sum(prediction.label == truth for prediction, truth in zip(told, names, strict=True))
    each = "; ".join(
        f"{truth}: {prediction.label} {percent(prediction.probability, 0)}"
        for prediction, truth in zip(told, names, strict=True)
    )
    return figure(
        partial(plot_predictions, judged.run.classifier, judged.test),
        "Test images chosen at random, not by how well they went. Solid frame: right; dashed: wrong.",
        alt=f"{len(names)} test images and what they are taken for, {right} of them right. Class: prediction. {each}.",
    )


def filters(judged: Judged) -> Markup:
    """Weights of the first convolution."""
    from cifarnet.visualize import plot_filters

    return figure(
        partial(plot_filters, judged.run.classifier.model),
        "What the first convolution looks for. Each filter has its own scale, on which middle grey is 0.",
        alt="The filters of the first convolution as small pictures.",
    )


def feature_maps(judged: Judged) -> Markup:
    """What layers make of an image."""
    from cifarnet.visualize import plot_feature_maps

    index = int(_chosen(judged, 1)[0])
    label = judged.run.classifier.class_name(int(judged.test.labels[index]))
    return figure(
        partial(plot_feature_maps, judged.run.classifier, judged.test.images[index]),
        "A row a layer, of which the maps are drawn that vary most; each has its own scale, from dark to bright.",
        alt=f"Maps that the layers of the network make of test image {index}, a {label}.",
    )


def grad_cam(judged: Judged) -> Markup:
    """Where the network looks."""
    from cifarnet.visualize import plot_grad_cam

    chosen = _chosen(judged, _NUM_EXPLAINED)
    classifier = judged.run.classifier
    names = ", ".join(classifier.class_name(label) for label in judged.test.labels[chosen].tolist())
    return figure(
        partial(plot_grad_cam, classifier, list(judged.test.images[chosen]), columns=3),
        "The brighter the colour on the grey image, the more a place speaks for the class that the image is taken for "
        "(Grad-CAM, arXiv:1610.02391); each image has its own scale.",
        alt=f"{len(chosen)} test images, over each a heat map of what the prediction rests on. True classes: {names}.",
    )


def network(judged: Judged) -> Markup:
    """The layers, from the image to the logits."""
    from cifarnet.models import summarize_model
    from cifarnet.visualize import plot_architecture

    classifier = judged.run.classifier
    shape = (len(classifier.preprocess.mean), classifier.preprocess.size, classifier.preprocess.size)
    summary = summarize_model(classifier.model, shape)
    rows = [(layer.name or "-", layer.kind, layer.output, count(layer.num_parameters)) for layer in summary.layers]
    head = ("module", "layer", "output", "parameters")
    caption = f"{summary.name}: {count(summary.num_parameters)} parameters, layer by layer"
    listed = table(caption, head, rows, texts=(0, 1, 2), id_="layers-table")
    shown = figure(
        partial(plot_architecture, classifier.model, shape),
        "Layers in running order, their output and their share of the parameters.",
        alt=f"The {len(rows)} layers of {summary.name} from top to bottom. The table has them all.",
        themes=False,
    )
    return join([shown, element("details", element("summary", "The same as a table"), listed)])


def _chosen(judged: Judged, num_images: int) -> Tensor:
    """The images that `plot_predictions` chooses, so that all sections speak of the same ones."""
    return randomness.permutation(0, 0, judged.test.ids)[:num_images]
