"""Report of a run as ``report.json`` and as an HTML page, and tables over several runs."""

from cifarnet.report.page import Page, build_page, save_page
from cifarnet.report.report_json import Run, build_report, load_report, load_run, save_report
from cifarnet.report.tables import comparison_table, read_reports, summarize_seeds

__all__ = [
    "Page",
    "Run",
    "build_page",
    "build_report",
    "comparison_table",
    "load_report",
    "load_run",
    "read_reports",
    "save_page",
    "save_report",
    "summarize_seeds",
]
