"""The place of one fault (a folder, the commands, an undisturbed run), and ways to corrupt files."""

import contextlib
import dataclasses
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import read_json, write_bytes
from ghost_jax.runs import run_record
from tests.conftest import TINY, WAIT, FinishedRun, Ghost, losses_of, tiny_base
from tests.test_sources_formats import SAMPLES, bundle, thing

PAGES = 3000  # of the book: its index takes long enough to be killed in
KILLS = 5  # tries to kill a process during an operation
SAME = "repeated, it gives the same metrics"


class NotTried(Exception):
    """The fault cannot be caused on this machine; the message has the reason."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of one fault: an empty folder, the commands, a finished undisturbed run, a random generator."""

    folder: Path
    ghost: Ghost
    finished: FinishedRun
    rng: random.Random

    @property
    def base(self) -> Path:
        """The run directory under the fault."""
        return self.folder / self.finished.base.name

    def train(self) -> list[str]:
        """Returns the command of the run under the fault."""
        return tiny_base(self.base)

    def unfinished(self) -> Path:
        """Stops a run that has two checkpoints and is unfinished; returns its newest checkpoint."""
        self.ghost.stop_at(self.ghost.start(*self.train()), self.base, 3, signal.SIGTERM)
        whole = [path for path in (self.base / "checkpoints").iterdir() if path.name.isdigit()]
        newest = max(whole, key=lambda path: int(path.name))
        assert len(whole) == 2
        assert int(newest.name) < TINY["steps"]
        return newest

    def own_cache(self) -> dict[str, str]:
        """Returns the environment of a copy of the shared cache, which a fault may corrupt."""
        shutil.copytree(self.ghost.cache, self.folder / "cache")
        return {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def stores(self) -> Path:
        """Returns the folder of the stores in `own_cache` or in an empty cache."""
        return self.folder / "cache" / "ghost_jax" / "stores"

    def kill(
        self, command: list, made: Path, when: Callable[[], bool], within: float, env: dict[str, str] | None = None
    ) -> None:
        """Kills one process at a random moment of an operation that is visible on the disk.

        Args:
          made: what the command writes; removed before each try.
          when: whether the operation is visible. It must still be when the process is dead.
          within: the largest delay of the kill in seconds, short against the operation.
        """
        for _ in range(KILLS):
            shutil.rmtree(made, ignore_errors=True)
            process = self.ghost.start(*command, env=env)
            deadline = time.monotonic() + WAIT
            while not when() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(self.rng.random() * within)
            process.kill()
            result = self.ghost.finish(process, check=False)
            if result.returncode == -signal.SIGKILL and when():
                return
            within /= 2
        raise AssertionError(f"the command ended before it was killed: {result.stderr}")

    def same_metrics(self, env: dict[str, str] | None = None) -> str:
        """Repeats the run and checks that its metrics are bit-identical to those of the undisturbed run."""
        said = self.ghost(*self.train(), env=env).stdout
        assert losses_of(self.base) == losses_of(self.finished.base)
        assert run_record.is_finished(self.base)
        assert not list(self.base.rglob("*.partial"))
        return "; ".join([*damage_in(said), SAME])

    def lexical(self) -> list[str]:
        """Returns the command that scores the open-book reader, which builds a missing index."""
        raw = self.folder / "data" / "raw"
        if not raw.exists():
            words = [f"{a}{b}" for a in ("scan", "load", "drop", "send", "read", "hide") for b in range(200)]
            texts = (" ".join(self.rng.choices(words, k=60)) for _ in range(PAGES))
            write_book(
                raw, [thing("attack-pattern", f"T{i}", f"Page {i}", description=text) for i, text in enumerate(texts)]
            )
        items, out = self.finished.workdir / "heldout.jsonl", self.folder / "score.json"
        words = ["evals.ctibench", "--book=open", "--reader=lexical"]
        return [*words, f"--items={items}", f"--data_dir={raw.parent}", f"--out={out}"]

    def same_answers(self, env: dict[str, str]) -> str:
        """Scores the reader with the shared cache and with the one in `env`; checks that the answers are equal."""
        self.ghost(*self.lexical())
        sound = read_json(self.folder / "score.json")
        (self.folder / "score.json").unlink()
        said = self.ghost(*self.lexical(), env=env).stdout
        assert read_json(self.folder / "score.json") == sound
        return "; ".join([*damage_in(said), "repeated, it gives the same answers"])


def write_book(raw: Path, pages: Sequence[dict]) -> None:
    """Writes the sources of an open book: the samples, and these STIX objects in ATT&CK for enterprises."""
    common = read_json(SAMPLES["attack"][0])["objects"]
    write_bytes(raw / "enterprise-attack-15.1.json", bundle(*common, *pages))
    for domain in ("mobile-attack", "ics-attack"):
        write_bytes(raw / f"{domain}-15.1.json", bundle(*common))
    write_bytes(raw / "stix-capec-3.9.json", SAMPLES["capec"][0].read_bytes())
    write_bytes(raw / "cwec_v4.14.xml", SAMPLES["cwe"][0].read_bytes())


def damage_in(said: str) -> list[str]:
    """Returns the first printed line that reports corruption, if there is one."""
    return [line for line in said.splitlines() if "corrupt" in line][:1]


def noticed(said: str) -> str:
    """Returns the message, after checking that it reports corruption."""
    assert "corrupt" in said, f"the corruption was not reported: {said}"
    return said


def damage(folder: Path, rng: random.Random, cut: bool, least: int = 1) -> None:
    """Flips a random bit in the files below a folder, or cuts a random file in half, weighted by size.

    Files of fewer than `least` bytes are left alone.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= least)
    (path,) = rng.choices(files, [file.stat().st_size for file in files])
    content = bytearray(path.read_bytes())
    if cut:
        del content[len(content) // 2 :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@contextlib.contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """Mounts a small disk. Raises NotTried where mounting is not allowed."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as fault:
        raise NotTried(f"no disk can be mounted here ({getattr(fault, 'stderr', b'') or fault})") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
