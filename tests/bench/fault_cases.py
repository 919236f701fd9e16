"""Faults that befall the real commands on the embedded pack at the smallest size, and whether they are survived.

Survived is what ends with one paragraph or, repeated, with the metrics of the run that nothing befell; where no
traceback is shown; and where nothing half-written looks whole.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghost_jax import run_dir
from ghost_jax.errors import FAILED
from ghost_jax.whole import read_json, write_bytes, write_text
from tests.conftest import WAIT, FinishedRun, Ghost, losses_of, paragraph_of, set_all, tiny_base, tiny_chat, updates_of
from tests.test_sources_cwe import CWE_XML
from tests.test_sources_stix import CAPEC_66, COMMON, bundle, thing

TOGETHER_SECONDS = 60  # in which the others of a lost process have ended
PAGES = 3000  # of the book: its index takes long enough to be met
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
        """Returns a copy of the finished run, made to go on from its newest checkpoint."""
        shutil.copytree(self.finished.base, self.base)
        (self.base / "status.json").unlink()
        return self.base

    def own_cache(self) -> dict[str, str]:
        """Returns the environment of a cache that may be damaged: a copy of what all commands share."""
        shutil.copytree(self.ghost.cache, self.folder / "cache")
        return {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def stores(self) -> Path:
        """Returns the folder of the stores in `own_cache` or in an empty cache."""
        return self.folder / "cache" / "ghost_jax" / "stores"

    def kill(self, process: subprocess.Popen, when: Callable[[], bool]) -> None:
        """Kills a process, and it alone, as soon as something can be seen on the disk."""
        deadline = time.monotonic() + WAIT
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        result = self.ghost.finish(process, check=False)
        assert result.returncode == -signal.SIGKILL, f"it ended before it could be killed: {result.stderr}"

    def same_metrics(self, env: dict[str, str] | None = None) -> str:
        """Repeats the run and checks that it ends as the one that nothing befell did, to the last bit."""
        said = self.ghost(*self.train(), env=env).stdout
        assert losses_of(self.base) == losses_of(self.finished.base)
        assert run_dir.is_finished(self.base)
        assert not list(self.base.rglob("*.partial"))
        told = [line for line in said.splitlines() if "damaged" in line]
        return f"{told[0]}; {SAME}" if told else SAME

    def lexical(self) -> list[str]:
        """Returns the command that reads an open book, and builds its index where there is none."""
        raw = self.folder / "data" / "raw"
        if not raw.exists():
            words = [f"{a}{b}" for a in ("scan", "load", "drop", "send", "read", "hide") for b in range(200)]
            texts = (" ".join(self.rng.choices(words, k=60)) for _ in range(PAGES))
            pages = [thing("attack-pattern", f"T{i}", f"Page {i}", description=text) for i, text in enumerate(texts)]
            write_bytes(raw / "enterprise-attack-15.1.json", bundle(*COMMON, *pages))
            write_bytes(raw / "stix-capec-3.9.json", bundle(CAPEC_66))
            write_bytes(raw / "cwec_v4.14.xml", CWE_XML.encode())
        items, out = self.finished.workdir / "heldout.jsonl", self.folder / "score.json"
        words = ["evals.ctibench", "--book=open", "--reader=lexical"]
        return [*words, f"--items={items}", f"--data_dir={raw.parent}", f"--out={out}"]

    def same_answers(self, env: dict[str, str]) -> str:
        """Reads the book with a sound cache and with the one in `env`; checks that both answer alike."""
        self.ghost(*self.lexical())
        sound = read_json(self.folder / "score.json")
        (self.folder / "score.json").unlink()
        self.ghost(*self.lexical(), env=env)
        assert read_json(self.folder / "score.json")["headline"] == sound["headline"]
        return "repeated, it gives the same answers"


# ---- Ways to do damage ----


def damage(folder: Path, rng: random.Random, cut: bool) -> None:
    """Flips a bit of a file below a folder, or cuts one in half; each byte is as likely to be hit as any other."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
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


# ---- The faults: each returns what was said, and fails an assertion where it is not survived ----


def killed_in_a_step(at: Place) -> str:
    at.ghost.stop_at(at.ghost.start(*at.train()), at.base, at.rng.randint(1, 6))
    return at.same_metrics()


def killed_in_a_save(at: Place) -> str:
    at.kill(at.ghost.start(*at.train()), lambda: bool(list(at.base.glob("checkpoints/*.orbax-checkpoint-tmp*"))))
    return at.same_metrics()


def killed_in_data_preparation(at: Place) -> str:
    env = {"XDG_CACHE_HOME": str(at.folder / "cache")}
    at.kill(at.ghost.start(*at.train(), env=env), lambda: bool(list(at.stores().glob("pretrain-*.partial/*"))))
    assert not list(at.stores().glob("pretrain-*[0-9a-f]")), "what is half there does not look whole"
    return at.same_metrics(env)


def killed_in_an_index_build(at: Place) -> str:
    env = {"XDG_CACHE_HOME": str(at.folder / "cache")}
    at.kill(at.ghost.start(*at.lexical(), env=env), lambda: bool(list(at.stores().glob("index-*.partial"))))
    assert not list(at.stores().glob("index-*[0-9a-f]")), "what is half there does not look whole"
    return at.same_answers(env)


def killed_in_an_export(at: Place) -> str:
    out = at.folder / "out"
    export = ("ghost_jax.export", f"--workdir={at.finished.workdir}", f"--out={out}")
    at.kill(at.ghost.start(*export), lambda: out.with_name("out.partial").exists())
    assert not out.exists()
    at.ghost(*export)
    assert (out / "config.json").is_file()
    assert not out.with_name("out.partial").exists()
    return "repeated, the export is whole"


def killed_in_a_sweep(at: Place) -> str:
    sweep = at.folder / "own.py"
    setting = "Setting('a', 'configs/pretrain_v05.py:nano', {})"
    lines = ("from ghost_jax.sweep_grid import Setting, Sweep", "", "", "def get_sweep(preset=''):")
    write_text(sweep, "\n".join([*lines, f"    return Sweep([{setting}], seeds=(0, 1))", ""]))
    runs = at.folder / "runs"
    words = ["ghost_jax.sweep", f"--config={sweep}", f"--runs={runs}", "--jobs=1", *at.train()[3:]]
    at.kill(at.ghost.start(*words), lambda: len(updates_of(runs / "a-seed0")) >= 2)
    subprocess.run(["flock", runs / ".lock", "true"], check=True, timeout=WAIT)  # the run that it started goes on
    at.ghost(*words)
    assert losses_of(runs / "a-seed0") == losses_of(at.finished.base)
    assert run_dir.is_finished(runs / "a-seed1")
    return SAME


def full_disk_under_a_run(at: Place) -> str:
    with disk(at.folder / "disk", "size=300k") as full:
        said = at.ghost.refused(*tiny_base(full / "base"))
        assert not run_dir.is_finished(full / "base")
    return said


def full_disk_under_the_cache(at: Place) -> str:
    with disk(at.folder / "cache", "size=1m") as full:
        said = at.ghost.refused(*at.train(), env={"XDG_CACHE_HOME": str(full)})
        assert all((store / "manifest.json").is_file() for store in at.stores().glob("*-*"))
    return said


def full_disk_under_an_export(at: Place) -> str:
    with disk(at.folder / "disk", "size=100k") as full:
        said = at.ghost.refused("ghost_jax.export", f"--workdir={at.finished.workdir}", f"--out={full / 'out'}")
        assert not list(full.iterdir())
    return said


def a_read_only_run_directory(at: Place) -> str:
    with disk(at.folder / "disk", "ro") as closed:
        return at.ghost.refused(*tiny_base(closed / "base"))


def a_read_only_cache(at: Place) -> str:
    with disk(at.folder / "disk", "ro") as closed:
        # Matplotlib has a cache of its own there, and warns of it before anything of ours runs.
        env = {"XDG_CACHE_HOME": str(closed), "MPLCONFIGDIR": str(at.folder)}
        return at.ghost.refused(*at.train(), env=env)


def a_file_in_place_of_the_run_directory(at: Place) -> str:
    at.base.write_text("not a folder")
    return at.ghost.refused(*at.train())


def checkpoint(cut: bool) -> Callable[[Place], str]:
    def damaged(at: Place) -> str:
        checkpoints = at.unfinished() / "checkpoints"
        newest = max(checkpoints.iterdir(), key=lambda path: int(path.name))
        # The rest of a checkpoint is records that nobody reads again.
        damage(newest / at.rng.choice(("params", "rest")), at.rng, cut)
        return at.same_metrics()

    return damaged


def store(kind: str, cut: bool) -> Callable[[Place], str]:
    def damaged(at: Place) -> str:
        env = at.own_cache()
        (place,) = (path for path in at.stores().glob(f"{kind}-*") if is_read_by(at.finished.base, path))
        damage(place, at.rng, cut)
        return at.same_metrics(env)

    return damaged


def is_read_by(workdir: Path, place: Path) -> bool:
    """Returns whether the run in a directory reads this store."""
    record = read_json(workdir / "data.json")
    return place.name in (record["corpus"], *record["stores"].values())


def index(cut: bool) -> Callable[[Place], str]:
    def damaged(at: Place) -> str:
        at.ghost(*at.lexical())
        env = at.own_cache()
        for place in at.stores().glob("index-*"):
            damage(place, at.rng, cut)
        return at.same_answers(env)

    return damaged


def record(name: str) -> Callable[[Place], str]:
    def damaged(at: Place) -> str:
        workdir = shutil.copytree(at.finished.workdir, at.folder / "chat")
        shutil.copytree(at.finished.base, at.base)
        content = (workdir / name).read_bytes()
        (workdir / name).write_bytes(content[: len(content) // 2])
        result = at.ghost("evals.ctibench", f"--workdir={workdir}", "--orders=published", check=False)
        return paragraph_of(result, FAILED) if result.returncode else "scored all the same: it does not read it"

    return damaged


def a_damaged_compile_cache(at: Place) -> str:
    env = at.own_cache()
    compiled = sorted((at.folder / "cache" / "ghost_jax" / "xla").iterdir())
    assert compiled, "nothing was compiled"
    for path in compiled:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return at.same_metrics(env)


def two_runs_in_one_directory(at: Place) -> str:
    first = at.ghost.start(*at.train(), *set_all({"steps": 100_000}))
    while not updates_of(at.base) and first.poll() is None:
        time.sleep(0.01)
    said = at.ghost.refused(*at.train())
    assert "Another process is training" in said
    assert first.poll() is None, "the first one is not disturbed"
    first.send_signal(signal.SIGTERM)
    at.ghost.finish(first, check=False)
    return said


def a_lost_worker(at: Place) -> str:
    together = ["launch.local", "--processes=2", "--devices=1", "--", sys.executable, "-m", *at.train()]
    launcher = at.ghost.start(*together)
    while len(updates_of(at.base)) < 3 and launcher.poll() is None:
        time.sleep(0.01)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    lost = time.monotonic()
    result = at.ghost.finish(launcher, check=False)
    seconds = time.monotonic() - lost
    assert result.returncode == 128 + signal.SIGKILL
    assert "Another process of this run is gone" in " ".join(result.stderr.replace("[0]", "").split())
    assert seconds < TOGETHER_SECONDS
    at.ghost(*together)
    for here, there in zip(losses_of(at.base), losses_of(at.finished.base), strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-4)
    return f"the other ended after {seconds:.0f} s with a paragraph; repeated, metrics agree to 1e-4"


def a_download_that_drips(at: Place) -> str:
    online = {"GHOST_OFFLINE": "0", "NO_PROXY": "*"}
    with dripping_server() as url:
        fetch = ["ghost_jax.data.fetch", "--sources=capec", f"--data_dir={at.folder}", f"--mirror={url}"]
        said = at.ghost.refused(*fetch, env=online)
    assert not list(at.folder.rglob("*.json"))
    return said


def another_data_folder_for_a_finished_run(at: Place) -> str:
    before = losses_of(at.finished.workdir)
    said = at.ghost.refused(*tiny_chat(at.finished.workdir, f"--data_dir={at.folder / 'nowhere'}"))
    assert losses_of(at.finished.workdir) == before
    return said


QUICK: dict[str, Callable[[Place], str]] = {
    "a read-only run directory": a_read_only_run_directory,
    "a file in place of the run directory": a_file_in_place_of_the_run_directory,
    "a finished run repeated with a wrong --data_dir": another_data_folder_for_a_finished_run,
    "a flipped bit in the newest checkpoint": checkpoint(cut=False),
    "a flipped bit in the training data": store("pretrain", cut=False),
}
FAULTS: dict[str, Callable[[Place], str]] = QUICK | {
    "kill -9 in a step": killed_in_a_step,
    "kill -9 in a save": killed_in_a_save,
    "kill -9 in data preparation": killed_in_data_preparation,
    "kill -9 in an index build": killed_in_an_index_build,
    "kill -9 in an export": killed_in_an_export,
    "kill -9 in a sweep": killed_in_a_sweep,
    "a full disk under a run": full_disk_under_a_run,
    "a full disk under the cache": full_disk_under_the_cache,
    "a full disk under an export": full_disk_under_an_export,
    "a read-only cache": a_read_only_cache,
    "the newest checkpoint cut short": checkpoint(cut=True),
    "the training data cut short": store("pretrain", cut=True),
    "a flipped bit in the corpus": store("corpus", cut=False),
    "a flipped bit in the index": index(cut=False),
    "the index cut short": index(cut=True),
    "config.json of a run cut short": record("config.json"),
    "tokenizer.json of a run cut short": record("tokenizer.json"),
    "data.json of a run cut short": record("data.json"),
    "heldout.jsonl of a run cut short": record("heldout.jsonl"),
    "the cache of compiled programs cut short": a_damaged_compile_cache,
    "two runs in one directory": two_runs_in_one_directory,
    "one of two processes lost": a_lost_worker,
    "a download that drips": a_download_that_drips,
}
