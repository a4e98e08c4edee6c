"""The parts of a page that say how good the network is."""

from __future__ import annotations

from functools import partial

from cifarnet.errors import InputError
from cifarnet.inference import Evaluation
from cifarnet.report.page.markup import Markup, element, join, name, table
from cifarnet.report.page.section import Judged, figure, note
from cifarnet.report.page.wording import UNKNOWN, count, duration, number, percent, shown

__all__ = ["calibration", "class_scores", "confusion", "curves", "evaluation", "result"]

_MAX_COUNTS = 20  # classes; the matrix of more does not fit a page as numbers
_MAX_CONFUSED = 15


def result(judged: Judged) -> Markup:
    """The number, how sure it is, how it was chosen, and what does not agree."""
    scores, run = judged.evaluation, judged.run
    low, high = scores.accuracy_interval
    facts = [
        ("Network", type(run.classifier.model).__name__),
        ("Parameters", count(sum(parameter.numel() for parameter in run.classifier.model.parameters()))),
        ("Epochs", count(len(run.history)) if len(run.history) else UNKNOWN),
        ("Training time", duration(sum(record.train_s for record in run.history)) if len(run.history) else UNKNOWN),
        ("Trained on", shown(run.fact("hardware") or run.environment.get("device") or UNKNOWN)),
        ("Calibration error", percent(scores.expected_calibration_error)),
    ]
    if scores.k < len(scores.confusion_matrix):
        facts.insert(0, (f"Top-{scores.k} accuracy", percent(scores.top_k_accuracy)))
    augmented = run.fact("metrics", "test_accuracy_tta")
    if augmented is not None:
        tta = shown(run.fact("recipe", "tta") or UNKNOWN)
        facts.insert(0, (f"With test-time augmentation ({tta}), as recorded by the run", percent(augmented)))
    parts = [
        element(
            "p",
            element("strong", percent(scores.accuracy)),
            f" of {count(scores.num_images)} test images are classified right.",
            class_="headline",
        ),
        element("p", f"95 % interval {percent(low)} to {percent(high)} (Wilson). {_how_chosen(judged)}"),
        element("dl", *(element("div", element("dt", key), element("dd", value)) for key, value in facts)),
    ]
    if judged.remarks:
        remarks = element("ul", *(element("li", remark) for remark in judged.remarks))
        title = element("h3", "What is missing or does not agree")
        parts.append(element("div", title, remarks, class_="remarks"))
    return join(parts)


def _how_chosen(judged: Judged) -> str:
    run = judged.run
    chosen, epochs = run.classifier.selected_by, len(run.history)
    monitor, epoch = chosen.get("monitor"), chosen.get("epoch")
    if not str(monitor).startswith("val_") and monitor != "final":
        return "How these weights were chosen is not recorded."
    of = f" of {epochs}" if epochs else ""
    if monitor == "final":
        how = f"The weights are those of the last epoch, {epoch}{of}: nothing was held out to choose by"
    else:
        held_out = run.fact("data", "val", "num_images")
        value = chosen.get("value")
        told = percent(value) if monitor == "val_accuracy" else number(value)
        images = f"{count(held_out)} images held out" if held_out is not None else "images held out"
        how = f"The weights are those of epoch {epoch}{of}, the best in {monitor} ({told}) on {images}"
    watched = run.fact("test_watched")
    if watched == "never":
        return f"{how}. The run evaluated no test images."
    return f"{how}. Test images were evaluated {watched}." if isinstance(watched, str) else f"{how}."


def curves(judged: Judged) -> Markup:
    """Loss and accuracy over the epochs."""
    from cifarnet.visualize import plot_training_curves

    history = judged.run.history
    if not len(history):
        raise InputError("no history of the run is at hand")
    first, last = history[0], history[-1]
    alt = (
        f"Curves of loss and accuracy over {len(history)} epochs. Training loss goes from {number(first.train_loss)} "
        f"to {number(last.train_loss)}, training accuracy from {percent(first.train_accuracy)} to "
        f"{percent(last.train_accuracy)}"
    )
    for split in ("val", "test"):
        begin, end = getattr(first, f"{split}_accuracy"), getattr(last, f"{split}_accuracy")
        if begin is not None and end is not None:
            alt += f", {'validation' if split == 'val' else split} accuracy from {percent(begin)} to {percent(end)}"
    monitor = judged.run.classifier.selected_by.get("monitor")
    plot = partial(
        plot_training_curves,
        history,
        monitor=monitor if isinstance(monitor, str) and monitor.startswith("val_") else "val_accuracy",
    )
    caption = (
        "Training values are measured while learning, with augmentation and dropout where the run has them, over the "
        "whole epoch; the others after it."
    )
    return figure(plot, caption, alt=f"{alt}.")


def evaluation(judged: Judged) -> Markup:
    """Scores of the whole, and of each class."""
    columns = [judged.evaluation]
    head = ["score", "value"]
    if judged.is_calibrated:
        columns = [judged.uncalibrated, judged.evaluation]
        head = ["score", "as trained", f"calibrated, temperature {judged.evaluation.temperature:.3f}"]
    rows = [(row[0][0], *(value for _, value in row)) for row in zip(*map(_scores, columns), strict=True)]
    whole = table(f"Scores on {judged.test.name}", head, rows, id_="scores-table")
    return join([whole, _class_table(judged.evaluation)])


def _scores(scores: Evaluation) -> list[tuple[str, str]]:
    rows = [
        ("accuracy", percent(scores.accuracy)),
        ("images classified right", f"{count(scores.num_correct)} of {count(scores.num_images)}"),
        ("loss (cross-entropy)", number(scores.loss)),
        ("log loss", number(scores.log_loss)),
        ("Brier score", number(scores.brier)),
        ("expected calibration error", percent(scores.expected_calibration_error)),
    ]
    if scores.k < len(scores.confusion_matrix):
        rows.insert(1, (f"top-{scores.k} accuracy", percent(scores.top_k_accuracy)))
    return rows


def _class_table(scores: Evaluation) -> Markup:
    rows = []
    for i, one in enumerate(scores.per_class):
        others = [0 if j == i else images for j, images in enumerate(scores.confusion_matrix[i])]
        most = max(others)
        rows.append(
            (
                name(one.name),
                count(one.num_images),
                percent(one.precision, 1) if one.num_predicted else "-",
                percent(one.recall, 1) if one.num_images else "-",
                percent(one.f1, 1) if one.num_images or one.num_predicted else "-",
                join([name(scores.class_name(others.index(most))), f" ({count(most)})"]) if most else "-",
            )
        )
    head = ("class", "images", "precision", "recall", "F1", "most often taken for")
    caption = "Scores of each class; a dash where there is nothing to divide by"
    return table(caption, head, rows, texts=(0, 5), id_="classes-table")


def class_scores(judged: Judged) -> Markup:
    """Bars of each class."""
    from cifarnet.visualize import plot_class_scores

    ranked = sorted((one for one in judged.evaluation.per_class if one.num_images), key=lambda one: one.f1)
    alt = (
        f"Bars of precision, recall and F1 of {len(judged.evaluation.per_class)} classes. Lowest F1: {ranked[0].name}, "
        f"{percent(ranked[0].f1, 1)}; highest: {ranked[-1].name}, {percent(ranked[-1].f1, 1)}. All values are in the "
        "table of each class."
    )
    return figure(
        partial(plot_class_scores, judged.evaluation),
        "Precision: of the images taken for a class, the share that is of it. Recall: of its images, the share found.",
        alt=alt,
    )


def confusion(judged: Judged) -> Markup:
    """What is taken for what."""
    from cifarnet.visualize import plot_confusion_matrix

    scores = judged.evaluation
    names = [scores.class_name(i) for i in range(len(scores.confusion_matrix))]
    pairs = sorted(
        (
            (images, i, j)
            for i, row in enumerate(scores.confusion_matrix)
            for j, images in enumerate(row)
            if i != j and images
        ),
        key=lambda pair: (-pair[0], pair[1:]),
    )[:_MAX_CONFUSED]
    most = f"{names[pairs[0][1]]} taken for {names[pairs[0][2]]}, {count(pairs[0][0])} images" if pairs else "none"
    parts = [
        figure(
            partial(plot_confusion_matrix, scores),
            "A row is a true class, a column what its images were taken for.",
            alt=f"Confusion matrix of {len(names)} classes. Most frequent confusion: {most}.",
        )
    ]
    if pairs:
        shares = [images / sum(scores.confusion_matrix[i]) for images, i, _ in pairs]
        rows = [
            (name(names[i]), name(names[j]), count(images), percent(share, 1))
            for (images, i, j), share in zip(pairs, shares, strict=True)
        ]
        head = ("class", "taken for", "images", "of the class")
        parts.append(table("The most frequent confusions", head, rows, texts=(0, 1), id_="confused-table"))
    if len(names) <= _MAX_COUNTS:
        counts = [(name(key), *map(count, row)) for key, row in zip(names, scores.confusion_matrix, strict=True)]
        matrix = table(
            "Images of each true class (rows) by predicted class (columns)",
            ("true class", *map(name, names)),
            counts,
            id_="confusion-table",
        )
        parts.append(element("details", element("summary", "All counts as a table"), matrix))
    return join(parts)


def calibration(judged: Judged) -> Markup:
    """Whether the network is right as often as it is sure."""
    from cifarnet.visualize import plot_reliability

    plain, used = judged.uncalibrated, judged.evaluation
    calibrated = used if judged.is_calibrated else None
    text = f"Expected calibration error {percent(plain.expected_calibration_error)}"
    if calibrated is not None:
        text += f" as trained, {percent(used.expected_calibration_error)} with the temperature {used.temperature:.3f}"
    plot = partial(plot_reliability, plain, calibrated=calibrated)
    parts = [
        figure(
            plot,
            f"{text}. Of images that it is 80 % sure of, a calibrated network classifies about 80 % right.",
            alt=f"Reliability diagram: share classified right by confidence, in 15 bins. {text}.",
        )
    ]
    if calibrated is None:
        parts.append(
            note(
                "The probabilities are as trained: there is no temperature. ",
                element("code", "cifarnet train --val-fraction 0.1"),
                " finds one on the images that it holds out.",
            )
        )
    return join(parts)
