"""Being asked to stop: long work finishes the step at hand and saves, instead of dying in the middle of it."""

import contextlib
import signal
from collections.abc import Callable, Iterator

ASKING = (signal.SIGTERM, signal.SIGINT)  # a scheduler that wants the machine back; Ctrl-C


@contextlib.contextmanager
def requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether this process was asked to stop; until then nothing is interrupted.

    A second Ctrl-C interrupts at once, for a user who does not want to wait.
    """
    asked = False

    def ask(signum: int, frame) -> None:
        nonlocal asked
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {signum: signal.signal(signum, ask) for signum in ASKING}
    try:
        yield lambda: asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
