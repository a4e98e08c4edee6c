"""``report``: everything of a run on one page."""

from __future__ import annotations

import argparse
from typing import Any

from cifarnet._files import check_target
from cifarnet.cli.data import load_data, source_of
from cifarnet.report import build_page, load_run, save_page

__all__ = ["report"]


def report(args: argparse.Namespace, command: str) -> tuple[dict[str, Any], str]:
    """Write the page, and tell what is not on it."""
    directory = args.path if args.path.is_dir() else args.path.parent
    if args.out is not None:
        check_target(args.out, ".html", name="report")  # before anything is read
    run = load_run(args.path, device=args.device)
    out = check_target(args.out or directory / "report.html", ".html", name="report")  # before half a minute of work
    source = args.data or source_of(args.path, run.classifier)
    test = load_data(source, size=run.classifier.preprocess.size).test
    page = build_page(run, test)
    path = save_page(page, out)
    num_bytes = path.stat().st_size
    document: dict[str, Any] = {
        "command": command,
        "run": str(args.path),
        "path": str(path),
        "num_bytes": num_bytes,
        "data": test.name,
        "sections": list(page.sections),
        "left_out": dict(page.left_out),
        "remarks": list(page.remarks),
        "accuracy": page.evaluation.accuracy,
        "accuracy_interval": list(page.evaluation.accuracy_interval),
        "num_images": page.evaluation.num_images,
    }
    lines = [f"{path}: {num_bytes / 1e6:.1f} MB, {len(page.sections)} sections; {test.name}: test {page.evaluation}"]
    lines += [f"left out, {section}: {reason}" for section, reason in page.left_out.items()]
    return document, "\n".join([*lines, *page.remarks])
