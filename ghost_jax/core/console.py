"""Progress of long work: a live bar on a terminal, a line every few seconds in a log, an ETA in both."""

import re
import shutil
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINE_SECONDS = 10.0

# Control characters move a terminal's cursor, change its title or paste into it; only tab and newline are harmless.
# Direction marks make a line read in another order than it is written. Surrogates cannot be printed.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""Returns text with control characters escaped, e.g. `\x1b`."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_controls(text), **options)


def make_console() -> Console:
    """Returns the console for tables: as wide as the terminal, or 120 columns without one.

    Strings are printed as they are, without markup: names of files and runs may have brackets.
    """
    return _Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 120, markup=False, emoji=False)


def duration(seconds: float) -> str:
    """Returns a readable time: "42 s", "3 min 20 s", "5 h 10 min"."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds / 86400:.1f} days"


class Progress:
    """Shows how much work is done. Use as a context manager.

    Args:
      label: the work ("training").
      total: its amount in `unit`.
      done: the amount that was done before, by an earlier run of the same command.
      shown: False in all processes but one.
      brief: whether nothing is left on the screen at the end.
    """

    def __init__(self, label: str, total: int, *, unit: str, done: int = 0, shown: bool = True, brief: bool = False):
        self._label, self._total, self._unit = label, total, unit
        self._done = self._first = done
        self._started = self._printed = time.monotonic()
        self._shown, self._brief = shown, brief
        self._bar = None
        if shown and sys.stdout.isatty():
            name, note = (TextColumn(f"{{task.{of}}}", markup=False) for of in ("description", "fields[note]"))
            clock = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
            self._bar = Bar(name, BarColumn(), MofNCompleteColumn(), note, *clock, transient=brief)
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, amount: int, note: str = "") -> None:
        """Adds work done; `note` stands beside the count ("loss 3.1  lr 5.0e-05  9,100 tok/s")."""
        self._done += amount
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=note)
            return
        now = time.monotonic()
        ended = self._done >= self._total and not self._brief
        if self._shown and (now - self._printed >= LINE_SECONDS or ended):
            self._printed = now
            spent = now - self._started
            left = spent / max(self._done - self._first, 1) * (self._total - self._done)
            line = f"{self._label} {self._done:,}/{self._total:,} {self._unit}  {note}".rstrip()
            print(f"{line}  {duration(spent)}, ETA {duration(left)}", flush=True)
