"""The page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from hostile import Made

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

#: A page around the report as a phone shows it, which asks it for its width and its images.
PROBE = """<script>addEventListener("load", () => parent.postMessage({
  scrolls: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  images: [...document.images].every(image => image.complete && image.naturalWidth > 0),
}, "*"));</script>"""
PHONE = """<!DOCTYPE html><pre></pre>
<iframe src="page.html" width="390" height="800" style="border: 0"></iframe><script>
addEventListener("message", event => { document.querySelector("pre").textContent = JSON.stringify(event.data); });
</script>"""


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}",
        "--enable-logging=stderr", "--v=0", "--dump-dom", *options, page.as_uri(),
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


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")
def test_page_does_not_scroll_sideways_on_a_phone(made: Made, tmp_path: Path) -> None:
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', PROBE, made.page.html)
    (tmp_path / "page.html").write_text(without_policy, encoding="utf-8")
    (tmp_path / "phone.html").write_text(PHONE)
    done = browse(tmp_path / "phone.html", "--virtual-time-budget=20000")
    (answer,) = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    assert json.loads(unescape(answer)) == {"scrolls": 0, "images": True}  # wide tables scroll in their own frame
