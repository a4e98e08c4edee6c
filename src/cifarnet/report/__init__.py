"""What a run was and what came of it: as ``report.json``, as a page to read, and several of them beside each other."""

from cifarnet.report.comparison import (
    comparison_table,
    format_result,
    published_table,
    read_reports,
    summarize_seeds,
)
from cifarnet.report.document import build_report, load_report, save_report
from cifarnet.report.page import Page, build_page, save_page
from cifarnet.report.run import Run, load_run

__all__ = [
    "Page",
    "Run",
    "build_page",
    "build_report",
    "comparison_table",
    "format_result",
    "load_report",
    "load_run",
    "published_table",
    "read_reports",
    "save_page",
    "save_report",
    "summarize_seeds",
]
