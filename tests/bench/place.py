"""Where a fault is tried: a folder of its own, the real commands, a run that nothing befell; and ways to do damage."""

import contextlib
import dataclasses
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ghost_jax.core.atomic_io import read_json, write_bytes
from ghost_jax.runs import run_dir
from tests.conftest import TINY, WAIT, FinishedRun, Ghost, losses_of, tiny_base
from tests.test_sources_formats import SAMPLES, bundle, thing

PAGES = 3000  # of the book: its index takes long enough to be met
KILLS = 5  # tries to meet a process in the middle of something
SAME = "repeated, it comes to the same metrics"


class NotTried(Exception):
    """This machine does not let the fault be made; the message says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one fault is tried: an empty folder, the commands, a finished run that nothing befell, and chance."""

    folder: Path
    ghost: Ghost
    finished: FinishedRun
    rng: random.Random

    @property
    def base(self) -> Path:
        """The run directory that the fault befalls."""
        return self.folder / self.finished.base.name

    def train(self) -> list[str]:
        """Returns the command of the run that the fault befalls."""
        return tiny_base(self.base)

    def unfinished(self) -> Path:
        """Makes a run that was stopped with two checkpoints whole and updates to come; returns the newest of them."""
        self.ghost.stop_at(self.ghost.start(*self.train()), self.base, 3, signal.SIGTERM)
        whole = [path for path in (self.base / "checkpoints").iterdir() if path.name.isdigit()]
        newest = max(whole, key=lambda path: int(path.name))
        assert len(whole) == 2
        assert int(newest.name) < TINY["steps"]
        return newest

    def own_cache(self) -> dict[str, str]:
        """Returns the environment of a cache that may be damaged: a copy of what all commands share."""
        shutil.copytree(self.ghost.cache, self.folder / "cache")
        return {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def stores(self) -> Path:
        """Returns the folder of the stores in `own_cache` or in an empty cache."""
        return self.folder / "cache" / "ghost_jax" / "stores"

    def kill(
        self,
        command: list[str],
        made: Path,
        when: Callable[[], bool],
        within: float,
        env: dict[str, str] | None = None,
    ) -> None:
        """Kills a command, and it alone, at a drawn moment while something can be seen on the disk.

        Args:
          made: what the command writes; it is removed before a try, which a kill that came too late needs.
          when: says whether it can be seen. It must still be there when the process is dead.
          within: seconds, short against the work; the kill comes up to so much later than the first sight.
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
        raise AssertionError(f"it ended before it could be killed: {result.stderr}")

    def same_metrics(self, env: dict[str, str] | None = None) -> str:
        """Repeats the run and checks that it ends as the one that nothing befell did, to the last bit."""
        said = self.ghost(*self.train(), env=env).stdout
        assert losses_of(self.base) == losses_of(self.finished.base)
        assert run_dir.is_finished(self.base)
        assert not list(self.base.rglob("*.partial"))
        return "; ".join([*damage_in(said), SAME])

    def lexical(self) -> list[str]:
        """Returns the command that reads an open book, and builds its index where there is none."""
        raw = self.folder / "data" / "raw"
        if not raw.exists():
            words = [f"{a}{b}" for a in ("scan", "load", "drop", "send", "read", "hide") for b in range(200)]
            texts = (" ".join(self.rng.choices(words, k=60)) for _ in range(PAGES))
            pages = [thing("attack-pattern", f"T{i}", f"Page {i}", description=text) for i, text in enumerate(texts)]
            common = read_json(SAMPLES["attack"][0])["objects"]
            write_bytes(raw / "enterprise-attack-15.1.json", bundle(*common, *pages))
            for domain in ("mobile-attack", "ics-attack"):
                alone = thing("attack-pattern", f"T-{domain}", f"Of {domain}", description="It is told apart.")
                write_bytes(raw / f"{domain}-15.1.json", bundle(*common, alone))
            write_bytes(raw / "stix-capec-3.9.json", SAMPLES["capec"][0].read_bytes())
            write_bytes(raw / "cwec_v4.14.xml", SAMPLES["cwe"][0].read_bytes())
        items, out = self.finished.workdir / "heldout.jsonl", self.folder / "score.json"
        words = ["evals.ctibench", "--book=open", "--reader=lexical"]
        return [*words, f"--items={items}", f"--data_dir={raw.parent}", f"--out={out}"]

    def same_answers(self, env: dict[str, str]) -> str:
        """Reads the book with a sound cache and with the one in `env`; checks that both answer alike."""
        self.ghost(*self.lexical())
        sound = read_json(self.folder / "score.json")
        (self.folder / "score.json").unlink()
        said = self.ghost(*self.lexical(), env=env).stdout
        assert read_json(self.folder / "score.json") == sound
        return "; ".join([*damage_in(said), "repeated, it gives the same answers"])


def damage_in(said: str) -> list[str]:
    """Returns the first of the lines that a command printed that names damage, if there is one."""
    return [line for line in said.splitlines() if "damaged" in line][:1]


def noticed(said: str) -> str:
    """Returns what was said, after checking that it names the damage: what is unread, or as good as before, is none."""
    assert "damaged" in said or "corrupt" in said, f"nobody noticed the damage: {said}"
    return said


# ---- Ways to do damage ----


def damage(folder: Path, rng: random.Random, cut: bool, least: int = 1) -> None:
    """Flips a bit of a file below a folder, or cuts one in half; each byte is as likely to be hit as any other.

    Files of fewer than `least` bytes are left as they are.
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
    """Gives a small disk of its own. Raises NotTried where none may be mounted."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as fault:
        raise NotTried(f"no disk can be mounted here ({getattr(fault, 'stderr', b'') or fault})") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def dripping_server() -> Iterator[str]:
    """Serves every file a byte at a time, faster than any wait for the next byte ends; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.5)

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed, at the end
                while True:
                    threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
