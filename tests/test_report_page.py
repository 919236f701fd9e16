"""The report's page in a real browser: it shows every picture, and fits a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest

from ghost_jax.report import write
from tests.conftest import ROOT

RECORDS = ROOT / "evals" / "records"
RUNS = ("chat_v3-seed0", "chat_v5-seed0", "pretrain_v05-nano")
PHONE = 390  # CSS pixels
LEAST_FONT = 12  # CSS pixels
# The page is loaded into a frame as wide as a phone, and measured with all its parts open.
FRAME = """<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><pre></pre><script>
document.querySelector('iframe').onload = event => {{
  const page = event.target.contentDocument;
  page.querySelectorAll('details').forEach(part => part.open = true);
  const sizes = [...page.querySelectorAll('p, td, th, h2, figcaption')].map(
    part => parseFloat(event.target.contentWindow.getComputedStyle(part).fontSize));
  document.querySelector('pre').textContent = JSON.stringify({{
    pictures: [...page.images].map(image => [image.naturalWidth > 0 && image.alt.length > 0, image.width]),
    width: page.scrollingElement.scrollWidth,
    font: Math.min(...sizes),
    text: page.body.innerText,
    bold: page.querySelectorAll('p b, td b').length,
    loose: [...page.querySelectorAll('table')].filter(table => !table.closest('.table')).length,
  }});
}};</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report of recorded runs, with a comparison and a sweep whose texts are long and hostile."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    shutil.copy(RECORDS / "study.png", runs / "sweep.png")
    table = [["setting", "verdict"], ["x" * 300, "<b>y</b>"]]
    sweep = {"name": "lr", "axis": "optim.peak_lr", "settings": [], "notes": ["<b>a" + "b" * 300], "table": table}
    (runs / "sweep.json").write_text(json.dumps(sweep))
    write([RECORDS / name for name in RUNS], out, [runs / "sweep.json", *sorted(RECORDS.glob("*.json"))])
    return out


@pytest.fixture(scope="module")
def shown(report, tmp_path_factory) -> dict:
    """Measures of the page on a phone."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium to look at the page with: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    page = html.escape((report / "index.html").read_text())
    (folder / "frame.html").write_text(FRAME.format(width=PHONE, page=page))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000", "--dump-dom"]
    command = [program, *flags, (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search("<pre>(.+?)</pre>", dom, re.DOTALL)[1]))


@pytest.mark.slow
def test_a_phone_shows_every_picture_and_the_text_of_records_without_scrolling_sideways(shown, report):
    assert len(shown["pictures"]) == len(list(report.glob("*.png"))) > 10
    assert all(loaded and width > 250 for loaded, width in shown["pictures"]), shown["pictures"]
    assert shown["width"] <= PHONE
    assert shown["loose"] == 0, "a table that is wider than a phone scrolls in a box of its own"
    assert shown["font"] >= LEAST_FONT
    assert all(text in shown["text"] for text in ("<b>abbb", "<b>y</b>", "What we learned"))
    assert shown["bold"] == 0
