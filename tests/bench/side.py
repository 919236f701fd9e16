"""One side of a comparison, in a process of its own: `python -m tests.bench.side MODULE:CLASS ARGUMENTS`.

It warms up, then does a turn for each line that it is sent, and answers each with a line of JSON. `tests.bench.turns`
is the other end.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol


class Side(Protocol):
    """What a side of a comparison does. Its constructor takes what `ARGUMENTS` holds; each turn goes on from the last.

    A method returns when the work is done, not when it is under way.
    """

    def warm_up(self) -> list[float]:
        """Does everything once, so that it is compiled; returns what the other sides must come to as well, or []."""

    def turn(self) -> float:
        """Does the work of one turn; returns how much of it there was, in the comparison's unit."""

    def peak_bytes(self) -> int:
        """Returns the most memory that was held: of an accelerator, else of this process."""


def timed(work: Callable) -> tuple[float, object]:
    """Returns the seconds that a function took, and what it returned."""
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def main() -> None:
    """Serves one side until its input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply

    def reply(**said: object) -> None:
        print(json.dumps(said), file=replies, flush=True)

    module, _, name = sys.argv[1].partition(":")
    side: Side = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    seconds, figures = timed(side.warm_up)
    side.turn()  # the second time, what was compiled last or found its memory late is ready too
    reply(seconds=seconds, figures=figures)
    for _ in sys.stdin:
        seconds, units = timed(side.turn)
        reply(seconds=seconds, units=units, peak_bytes=side.peak_bytes())


if __name__ == "__main__":
    main()
