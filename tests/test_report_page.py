"""The report's page in a real browser: it loads without an error, shows every picture, and fits a phone."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghost_jax.report import write
from tests.conftest import ROOT

RECORDS = ROOT / "evals" / "records"
RUNS = ("chat_v3-seed0", "chat_v5-seed0", "pretrain_v05-nano")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
LEAST_FONT = 12  # CSS pixels
WAIT = 60
# What is asked of the loaded page: values of JavaScript expressions.
PICTURES = "[...document.images].map(i => ({alt: i.alt, loaded: i.complete && i.naturalWidth > 0, wide: i.width}))"
SCROLLS = "document.scrollingElement.scrollWidth"
FONTS = (
    "Math.min(...[...document.querySelectorAll('p, td, th, h2')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
)
LOOSE_TABLES = "[...document.querySelectorAll('table')].filter(t => !t.closest('.wide')).length"


class Browser:
    """A headless Chromium with one page, spoken to in the DevTools protocol: JSON messages over two pipes."""

    def __init__(self, program: str, profile: Path):
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()
        # It reads file descriptor 3 and writes 4.
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += [f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{replies}', program, *flags],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self._read, self._number, self.events = b"", 0, []
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params) -> dict:
        """Returns the browser's answer to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def until(self, event: str) -> None:
        """Waits for an event."""
        while not any(each["method"] == event for each in self.events):
            self.events.append(self._next())

    def value(self, expression: str):
        """Returns the value of a JavaScript expression on the page."""
        reply = self.ask("Runtime.evaluate", expression=f"JSON.stringify({expression})", awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return json.loads(reply["result"]["value"])

    def happened(self, method: str) -> list[dict]:
        """Returns the parameters of each event of a kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def _next(self) -> dict:
        deadline = time.monotonic() + WAIT
        while b"\0" not in self._read:
            ready = select.select([self._replies], [], [], max(0, deadline - time.monotonic()))[0]
            more = os.read(self._replies, 1 << 16) if ready else b""
            assert more, f"the browser says nothing: exit code {self._process.poll()}"
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._replies)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The folder of a report of recorded runs, with a comparison and a sweep whose words are long and hostile."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    shutil.copy(RECORDS / "study.png", runs / "sweep.png")
    sweep = {"name": "lr", "axis": "optim.peak_lr", "settings": [], "notes": ["<b>a" + "b" * 300]}
    (runs / "sweep.json").write_text(json.dumps(sweep))
    write([RECORDS / name for name in RUNS], out, [runs / "sweep.json", *sorted(RECORDS.glob("*.json"))])
    return out


@pytest.fixture(scope="module")
def page(report, tmp_path_factory) -> Iterator[Browser]:
    """The page as a phone without a network shows it."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium here to look at the page with: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    with contextlib.closing(browser):
        browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
        browser.ask(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        browser.events.clear()
        browser.ask("Page.navigate", url=(report / "index.html").as_uri())
        browser.until("Page.loadEventFired")
        yield browser


def test_nothing_goes_wrong_while_the_page_loads(page):
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed", "Runtime.consoleAPICalled")
    assert {method: page.happened(method) for method in wrong} == {method: [] for method in wrong}
    asked = [each["request"]["url"] for each in page.happened("Network.requestWillBeSent")]
    assert [url.partition(":")[0] for url in asked if not url.startswith("data:image/png;base64,")] == ["file"]


def test_every_picture_is_really_shown(page, report):
    pictures = page.value(PICTURES)
    assert len(pictures) == len(list(report.glob("*.png"))) > 10
    assert all(picture["loaded"] and picture["alt"] and picture["wide"] > 250 for picture in pictures), pictures


def test_a_phone_shows_the_page_without_scrolling_sideways(page):
    assert page.value("innerWidth") == PHONE["width"]
    assert page.value(SCROLLS) <= PHONE["width"]
    assert page.value(LOOSE_TABLES) == 0, "a table that is wider than a phone scrolls in a box of its own"
    assert page.value(FONTS) >= LEAST_FONT


def test_what_records_say_stands_there_as_text(page):
    text = page.value("document.body.innerText")
    assert "<b>abbb" in text
    assert "What we learned" in text
    assert page.value("document.querySelectorAll('b').length") == 0
