"""What a run was and what came of it, as ``report.json``; and what several of them say together."""

from cifarnet.report.comparison import (
    comparison_table,
    format_result,
    published_table,
    read_reports,
    summarize_seeds,
)
from cifarnet.report.document import build_report, load_report, save_report

__all__ = [
    "build_report",
    "comparison_table",
    "format_result",
    "load_report",
    "published_table",
    "read_reports",
    "save_report",
    "summarize_seeds",
]
