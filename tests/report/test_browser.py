"""The page in a real browser: nothing to complain about, and something to see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hostile import Made
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:No installed font has:UserWarning")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

#: Asks the page for what a reader would notice, and hands it to the document around it.
PROBE = """<script>
addEventListener("load", () => parent.postMessage({
  scrolls: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  width: document.documentElement.clientWidth,
  images: [...document.images].map(image => image.complete && image.naturalWidth > 0),
  readable: [...document.querySelectorAll(".wide img")].every(image => image.clientWidth >= 500),
  focusable: [...document.querySelectorAll("a, summary, [tabindex]")].filter(item => item.tabIndex === 0).length,
}, "*"));
</script>"""
AROUND = """<!DOCTYPE html>
<pre></pre><iframe src="page.html" width="320" height="800" style="border: 0"></iframe><script>
addEventListener("message", event => { document.querySelector("pre").textContent = JSON.stringify(event.data); });
</script>"""


def browse(*options: str, page: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Open a file in headless Chromium, with a profile of its own and no network."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
        f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr", "--v=0", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_has_nothing_to_complain_about_and_shows_it_light_and_dark(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(made.page.html, encoding="utf-8")
    mean = []
    for dark in (True, False):
        shot = tmp_path / f"{dark}.png"
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        done = browse(scheme, f"--screenshot={shot}", "--window-size=1280,1600", page=page, scratch=tmp_path)
        assert complaints(done) == []
        with Image.open(shot) as picture:
            colours = picture.convert("RGB").getcolors(maxcolors=2**24)
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape == (1600, 1280)
        assert colours is not None
        assert len(colours) > 200  # letters, and curves in colours
        mean.append(float(pixels.mean()))
    assert mean[0] < 70 < 200 < mean[1]


def test_a_browser_runs_no_script_that_got_in_and_says_so(made: Made, tmp_path: Path) -> None:
    """The policy holds, and the other test would see a complaint."""
    page = tmp_path / "page.html"
    page.write_text(made.page.html.replace("</main>", "<script>document.title = 'ran'</script></main>"))
    done = browse("--dump-dom", page=page, scratch=tmp_path)
    assert "<title>ran" not in done.stdout
    assert len(complaints(done)) == 1
    assert "Content Security Policy" in complaints(done)[0]


def test_it_fits_the_smallest_phone(made: Made, tmp_path: Path) -> None:
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made.page.html)
    (tmp_path / "page.html").write_text(open_page.replace("</head>", f"{PROBE}</head>"), encoding="utf-8")
    around = tmp_path / "around.html"
    around.write_text(AROUND)
    done = browse("--dump-dom", "--virtual-time-budget=20000", page=around, scratch=tmp_path)
    (told,) = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    seen = json.loads(unescape(told))
    assert seen["width"] == 320
    assert seen["scrolls"] == 0  # what is too wide scrolls in its own frame
    assert seen["images"] == [True] * 11
    assert seen["readable"]
    assert seen["focusable"] > 2 * len(made.page.sections)
