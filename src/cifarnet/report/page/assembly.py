"""One page about a run: the parts in order, put into a document that needs nothing else and runs nothing."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import cifarnet
from cifarnet._files import check_target, write_atomic
from cifarnet.data import ImageDataset
from cifarnet.errors import CifarnetError
from cifarnet.inference import Evaluation
from cifarnet.report.page import facts, looks, scores
from cifarnet.report.page.markup import Markup, element, join
from cifarnet.report.page.section import Judged, note
from cifarnet.report.page.wording import count, percent
from cifarnet.report.run import Run

__all__ = ["Page", "build_page", "save_page"]

#: What is on a page, in its order: the name in addresses, the heading, and what makes it.
_SECTIONS: tuple[tuple[str, str, Callable[[Judged], Markup]], ...] = (
    ("result", "Result", scores.result),
    ("curves", "Training curves", scores.curves),
    ("evaluation", "Evaluation", scores.evaluation),
    ("classes", "Class by class", scores.class_scores),
    ("confusion", "What is taken for what", scores.confusion),
    ("calibration", "Calibration", scores.calibration),
    ("losses", "Most wrong", looks.top_losses),
    ("predictions", "Sample predictions", looks.predictions),
    ("grad-cam", "Where it looks", looks.grad_cam),
    ("filters", "First-layer filters", looks.filters),
    ("maps", "Feature maps", looks.feature_maps),
    ("network", "Architecture", looks.network),
    ("schedule", "Learning rate", facts.schedule),
    ("recipe", "Recipe", facts.recipe),
    ("environment", "Environment", facts.environment),
    ("command", "Command", facts.command),
    ("history", "History", facts.history),
)


@dataclass(frozen=True)
class Page:
    """A page about a run.

    Args:
        html: The whole document.
        sections: Names of its sections, in order.
        left_out: Which of them are empty, and why.
        remarks: What is missing or does not agree, in sentences.
        evaluation: The scores that it shows.
    """

    html: str
    sections: tuple[str, ...]
    left_out: Mapping[str, str]
    remarks: tuple[str, ...]
    evaluation: Evaluation


def build_page(run: Run, test: ImageDataset) -> Page:
    """Write one self-contained HTML page with everything of a run.

    The network is scored on the test images, and every figure is drawn for a light and for a dark page. Nothing on the
    page is loaded from elsewhere, no script is in it, and every text of others (class names, paths, commands) is
    escaped. The same run gives the same bytes.

    Args:
        run: Of `load_run`.
        test: Test images with the classes of the network.

    Returns:
        The page. What cannot be shown is left out, and says why.

    Raises:
        InputError: If the images have other classes.
        NonFiniteLogitsError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import load_cifar10
        >>> page = build_page(load_run("runs/reference"), load_cifar10("data").test)  # doctest: +SKIP
        >>> save_page(page, "report.html")  # doctest: +SKIP
    """
    judged = _judge(run, test)
    contents: list[Markup] = []
    left_out: dict[str, str] = {}
    for id_, heading, build in _SECTIONS:
        try:
            content = build(judged)
        except CifarnetError as error:  # what this run, or this network, does not have
            left_out[id_] = str(error)
            content = note(f"Left out: {error}.")
        title = element("h2", element("a", heading, href=f"#{id_}"), id=f"{id_}-title")
        contents.append(element("section", title, content, id=id_, aria_labelledby=f"{id_}-title"))
    html = _document(_title(run), contents)
    return Page(html, tuple(id_ for id_, _, _ in _SECTIONS), left_out, judged.remarks, judged.evaluation)


def save_page(page: Page, path: str | Path) -> Path:
    """Write a page to a file, whole or not at all.

    Args:
        page: Of `build_page`.
        path: Where it goes, ending in ``.html``; an older one is replaced.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
        SettingError: If the name ends otherwise, or its folder is not there.
    """
    target = check_target(path, ".html", name="report")
    write_atomic(target, page.html.encode())
    return target


def _judge(run: Run, test: ImageDataset) -> Judged:
    classifier = run.classifier
    evaluation = uncalibrated = classifier.evaluate(test)
    if classifier.temperature != 1:
        temperature, classifier.temperature = classifier.temperature, 1.0
        try:
            uncalibrated = classifier.evaluate(test)
        finally:
            classifier.temperature = temperature
    remarks = list(run.remarks)
    fingerprint, right = run.fact("data", "test", "fingerprint"), run.fact("metrics", "test_num_correct")
    if fingerprint is not None and fingerprint != test.fingerprint:
        remarks.append(
            "The test images of this page are not those of the run: their fingerprints differ, see Environment."
        )
    elif right is not None and right != evaluation.num_correct:
        remarks.append(
            f"The run itself counted {count(right)} images right, this page {count(evaluation.num_correct)} "
            f"({percent(evaluation.accuracy)}): another machine, number format or version rounds otherwise."
        )
    return Judged(run, test, evaluation, uncalibrated, tuple(remarks))


def _title(run: Run) -> str:
    if run.recipe is not None:
        seed = run.fact("seed") if run.report else run.settings.get("seed")
        return run.recipe.name if seed is None else f"{run.recipe.name}, seed {seed}"
    return type(run.classifier.model).__name__


def _document(title: str, contents: list[Markup]) -> str:
    """With a policy that lets a browser run nothing and load nothing, whatever might have got in."""
    style = files("cifarnet.report.page").joinpath("page.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="generator", content=f"cifarnet {cifarnet.__version__}"),
        element("title", f"{title}: a run of cifarnet"),
        element("link", rel="icon", href="data:,"),  # or a browser asks the server for one
        element("style", Markup(style)),
    )
    links = [element("li", element("a", heading, href=f"#{id_}")) for id_, heading, _ in _SECTIONS]
    body = element(
        "body",
        element("a", "Skip to the result", href="#result", class_="skip"),
        element("header", element("h1", title), element("p", "A run of cifarnet, on one page.")),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", join(contents, "\n")),
        element("footer", element("p", "Nothing on this page is loaded from elsewhere, and nothing in it runs.")),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
