"""The sides of a comparison take turns: while one works, the others are stopped, threads and all.

A thread pool that waits for work by spinning would otherwise take the cores from whoever is being timed.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ghost_jax.core.errors import UserError

# Everything is compiled anew, so that the time of the first call says what compiling costs. JAX takes what memory it
# needs of an accelerator and not most of it, because the sides share it. Each side allocates as its own command would:
# ours asks for huge pages when it starts, and no other library does.
ENVIRONMENT = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "GLIBC_TUNABLES": "",
}


@dataclass(frozen=True)
class Contender:
    """A side of a comparison.

    Attributes:
      name: what tables call it.
      side: "module:Class" of a `tests.bench.side.Side`.
      arguments: of its constructor, as JSON takes them.
      unit: of its work.
      needs, programs: packages and programs without which it is left out.
      environment: variables of its process.
      tolerance: largest difference of its first figures from those of the first side, as a share of the latter;
        None where any is allowed.
    """

    name: str
    side: str
    arguments: Mapping
    unit: str
    needs: tuple[str, ...]
    programs: tuple[str, ...]
    environment: Mapping[str, str]
    tolerance: float | None

    def lacks(self) -> list[str]:
        """Returns what it needs and is not installed."""
        packages = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return packages + [name for name in self.programs if shutil.which(name) is None]


class Process:
    """The process of a side: it runs while it is asked, and is stopped otherwise. `pid` is also that of its group."""

    def __init__(self, contender: Contender):
        self._name = contender.name
        command = [sys.executable, "-m", "tests.bench.side", contender.side, json.dumps(contender.arguments)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **contender.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,  # its helpers are stopped with it
        )
        self.pid = self._process.pid

    def reply(self) -> dict:
        """Waits for what the process says, first of its first call and then of each turn; then it is stopped."""
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"The side {self._name} ended in the middle (exit code {self._process.wait()}). What it said of that "
                "stands above; leave its comparison out with --only, or mend it."
            )
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def turn(self) -> dict:
        """Lets the process do one turn; returns its seconds, its units and its memory so far."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # the missing reply tells it
            self._process.stdin.write("turn\n")
            self._process.stdin.flush()
        return self.reply()

    def end(self) -> None:
        """Ends the process wherever it stands."""
        self._signal(signal.SIGKILL)
        self._process.communicate()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def compare(contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> dict:
    """Lets contenders take `rounds` turns each, A B A B …, and returns the record of it; the first one is ours.

    `sides`: of each, the seconds and units of its turns, their median rate, the seconds of its first call (`warm_up_s`,
    compiling included) and its peak memory. `largest_difference`: between the figures that the first side returned
    while warming up and those of each other, where it returned any. `left_out`: who could not run, and why.

    Raises UserError where a side ends early, and, before any turn is timed, where its figures are out of tolerance.
    """
    present, left_out = [], {}
    for each in contenders:
        if lacks := each.lacks():
            left_out[each.name] = f"{' and '.join(lacks)} not installed"
            say(f"{each.name}: left out, {left_out[each.name]}")
        else:
            present.append(each)
    with contextlib.ExitStack() as stack:
        processes, warmed, turns = {}, {}, {each.name: [] for each in present}
        for each in present:
            say(f"{each.name}: starting and compiling")
            processes[each.name] = Process(each)
            stack.callback(processes[each.name].end)
            warmed[each.name] = processes[each.name].reply()
        differences = _differences(present, {name: reply["figures"] for name, reply in warmed.items()})
        for number in range(1, rounds + 1):
            for name, process in processes.items():
                turns[name].append(process.turn())
            say(f"round {number} of {rounds}: " + ", ".join(f"{n} {t[-1]['seconds']:.2f} s" for n, t in turns.items()))
    sides = {
        each.name: {
            "unit": each.unit,
            "per_s": statistics.median(turn["units"] / turn["seconds"] for turn in turns[each.name]),
            "seconds": [turn["seconds"] for turn in turns[each.name]],
            "units": [turn["units"] for turn in turns[each.name]],
            "warm_up_s": warmed[each.name]["seconds"],
            "peak_bytes": turns[each.name][-1]["peak_bytes"],
        }
        for each in present
    }
    return {"sides": sides, "largest_difference": differences, "left_out": left_out}


def _differences(contenders: Sequence[Contender], figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns each side's largest difference from the first one. Raises UserError where one is out of tolerance."""
    first, *others = contenders
    found = {}
    for each in others:
        pairs = list(zip(figures[each.name], figures[first.name], strict=True)) if figures[each.name] else []
        for theirs, ours in pairs:
            # Written so that NaN is out of tolerance too.
            if each.tolerance is not None and not abs(theirs - ours) <= each.tolerance * abs(ours):
                raise UserError(
                    f"The first figures of {each.name} and {first.name} differ: {theirs:.6g} and {ours:.6g}, more than "
                    f"{each.tolerance:.2%} apart. They do not compute the same, so their speeds are not compared. "
                    "Leave the comparison out with --only, or fix the side."
                )
        if pairs:
            found[each.name] = max(abs(theirs - ours) for theirs, ours in pairs)
    return found
