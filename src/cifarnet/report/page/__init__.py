"""One self-contained HTML page with everything of a run."""

from cifarnet.report.page.assembly import Page, build_page, save_page

__all__ = ["Page", "build_page", "save_page"]
