"""The page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hostile import Made

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browse(page: Path) -> subprocess.CompletedProcess[str]:
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}",
        "--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")
def test_browser_loads_nothing_and_runs_no_injected_script(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    injected = "<script>document.title = 'ran'</script><img src='https://example.org/x.png'>"
    for html, num_complaints in ((made.page.html, 0), (made.page.html.replace("</main>", f"{injected}</main>"), 2)):
        page.write_text(html, encoding="utf-8")
        done = browse(page)
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert len(complaints) == num_complaints
        assert all("Content Security Policy" in line for line in complaints)
        assert "<title>ran" not in done.stdout
