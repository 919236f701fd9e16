"""ghost_jax/core/object_store.py: runs and data in S3 and GCS, over real sockets, with kills and failing stores."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from ghost_jax.core import object_store
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.core.object_store import leased, mirror, path_of
from ghost_jax.core.paths import local_path
from ghost_jax.runs import metrics
from ghost_jax.training.checkpoint import Checkpoints
from tests.conftest import ROOT, paragraph_of, set_all, tiny_base, tiny_chat
from tests.models import slow

KILLS = int(os.environ.get("GHOST_KILLS", "4"))


@dataclass(frozen=True)
class Store:
    """A bucket of a server that runs here, and the folder that tells the server to fail."""

    root: str  # "s3://bucket"
    faults: Path

    def path(self, name: str) -> object_store.StorePath:
        return path_of(f"{self.root}/{name}")

    @contextlib.contextmanager
    def failing(self, kind: str, text: str = "") -> Iterator[None]:
        """Lets the server fail in one way, see `tests.store_servers`, until the context ends."""
        fault = self.faults / kind
        fault.write_text(text)
        try:
            yield
        finally:
            fault.unlink()


@contextlib.contextmanager
def served(kind: str, faults: Path) -> Iterator[Store]:
    """Starts the server of a store; the variables of this process lead every client to it."""
    for package in ("s3fs", "gcsfs", "moto", "gcp_storage_emulator"):
        pytest.importorskip(package, reason="needs requirements-stores.txt, moto[server] and gcp-storage-emulator")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "tests.store_servers", kind, str(port), str(faults)]
    url = f"http://127.0.0.1:{port}"
    variables = {
        "s3": {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        "gs": {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # a look-up by gRPC, which the emulator has not
            "GOOGLE_CLOUD_PROJECT": "test",
        },
    }[kind]
    with pytest.MonkeyPatch.context() as patch, open(os.devnull, "w") as quiet:
        for name, value in variables.items():
            patch.setenv(name, value)
        server = subprocess.Popen(words, cwd=ROOT, stdout=quiet, stderr=quiet)
        try:
            wait_for(lambda: answers(port), 60)
            if kind == "s3":
                urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"))
            yield Store(f"{kind}://bucket", faults)
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module", params=[slow("s3"), slow("gs")])
def store(request, tmp_path_factory):
    with served(request.param, tmp_path_factory.mktemp("faults")) as store:
        yield store


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def one_paragraph(result: subprocess.CompletedProcess) -> None:
    """Checks the error of a command, below what TensorStore logs where there are no credentials."""
    result.stderr = re.sub(r"^[EIW]\d{4} .*\n", "", result.stderr, flags=re.MULTILINE)
    paragraph_of(result, 1)


def computed(workdir) -> tuple[list[dict], dict]:
    """Returns what a run computed: its metrics without times, and the checksums of its last checkpoint's leaves."""
    lines = [{k: v for k, v in line.items() if k not in metrics.MEASURED} for line in metrics.read(workdir)]
    with Checkpoints(workdir, keep=0, read_only=True) as checkpoints:
        record = checkpoints.record(checkpoints.latest)
    return lines, {item: record[item] for item in ("params", "rest")}


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def resume_until_done(command: list[str], workdir, env: dict[str, str], log: Path, kills: int, processes: int) -> int:
    """Repeats a command and kills it, or one of its processes, at random moments; returns how many it survived."""
    rng, survived = random.Random(0), 0
    while not (workdir / "status.json").is_file():
        before = saved_lines(workdir)
        with log.open("w") as out:
            words = [sys.executable, "-m", *command]
            process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
        if survived < kills:
            if rng.random() < 0.8:  # else while it starts
                wait_for(lambda process=process: process.poll() is not None or "training" in log.read_text(), 180)
            time.sleep(rng.uniform(0.0, 1.0))
            if processes > 1:
                wait_for(lambda process=process: children_of(process.pid), 60)
            os.kill(rng.choice(children_of(process.pid)) if processes > 1 else process.pid, signal.SIGKILL)
            assert process.wait(120) != 0, "the run came to its end before the signal"
            survived += 1
        else:
            assert process.wait(1800) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert metrics.read(workdir)[: len(before)] == before
    return survived


def saved_lines(workdir) -> list[dict]:
    """Returns the metrics up to the newest checkpoint, which a resumed run keeps."""
    with Checkpoints(workdir, keep=0, read_only=True) as checkpoints:
        latest = checkpoints.latest or 0
    return [line for line in metrics.read(workdir) if line["step"] <= latest]


# ---- Without a server ----


def test_a_typed_path_is_local_or_in_a_known_store():
    assert (path_of("runs/x"), path_of("~/x")) == (Path("runs/x"), Path.home() / "x")
    for text in ("http://host/x", "s3://", "file:///x", "gs:///x", "s3://b/run*", "s3://b/run[1]", "s3://a:b@c/x", ""):
        with pytest.raises(UsageError, match=text.partition(":")[0] or "empty"):
            path_of(text)
        with pytest.raises(UsageError):
            local_path(text)


def test_a_store_path_resolves_without_a_folder_of_this_machine():
    assert str(object_store.StorePath("gs://bucket").parent / "base") == "gs://bucket/base"  # not another bucket
    pytest.importorskip("s3fs")
    assert str((path_of("s3://bucket/runs/a") / "../b").resolve()) == "s3://bucket/runs/b"


# ---- Runs ----


def test_a_chat_run_in_a_store_is_that_of_a_disk(store, ghost, tiny_run, tmp_path):
    workdir = store.path("runs/chat")
    ghost(*tiny_chat(workdir))
    assert computed(workdir) == computed(tiny_run.workdir)
    assert len(list((workdir / "metrics").glob("*.jsonl"))) > 1
    ghost.here("ghost_jax.report", f"--runs={store.root}/runs", f"--out={tmp_path / 'report'}")
    assert (tmp_path / "report/index.html").is_file()
    for name, run in {"there": workdir, "here": tiny_run.workdir}.items():
        ghost.here("ghost_jax.export", f"--workdir={run}", f"--out={tmp_path / name}")
    exported, local = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("there", "here"))
    assert exported == local
    ghost.here("evals.ctibench", f"--workdir={workdir}", f"--items={tiny_run.workdir / 'heldout.jsonl'}")
    assert (workdir / "evals/heldout.json").is_file()
    ghost(*tiny_chat(workdir))  # finished: it only reports


def ends_as_undisturbed(workdir, undisturbed, command, env: dict[str, str], log: Path, processes: int) -> bool:
    """Whether a run that is killed again and again computes what an undisturbed one does."""
    for place, times in {undisturbed: 0, workdir: KILLS}.items():
        assert resume_until_done(command(place), place, env, log, times, processes) == times
    return computed(workdir) == computed(undisturbed)


def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(store, ghost, tmp_path):
    flags = set_all({"steps": 60 * KILLS, "eval_every": 100, "save_every": 10})
    places, log = (store.path("killed/base"), tmp_path / "base"), tmp_path / "log"
    assert ends_as_undisturbed(*places, lambda place: tiny_base(place, *flags), ghost.environment(), log, 1)


SOAK = {"steps": 300, "data.seq_len": 64, "micro_batch_size": 1, "save_every": 20, "eval_every": 100, "log_every": 1}
SOAK |= {"model.dtype": "float32", "optim.warmup_steps": 20, "data.validation_records": 8}


def soaked(workdir, ghost, tmp_path) -> bool:
    """300 updates of nano on 2 x 4 devices; either process may be lost, in a step, a save or a start."""
    launcher = ["launch.local", "--processes=2", "--devices=4", "--", "python", "-m"]
    recipe = ["ghost_jax.train", "--config=configs/pretrain_v05.py:nano", *set_all(SOAK)]
    # Without optimizations, two processes are too slow for so many updates.
    env = ghost.environment({"JAX_DISABLE_MOST_OPTIMIZATIONS": None, "XLA_FLAGS": None})
    undisturbed, log = tmp_path / "undisturbed" / "base", tmp_path / "log"
    command = [*launcher, *recipe]
    return ends_as_undisturbed(workdir, undisturbed, lambda place: [*command, f"--workdir={place}"], env, log, 2)


def test_two_processes_of_which_one_is_killed_again_and_again_end_as_undisturbed(store, ghost, tmp_path):
    assert soaked(store.path("soak/base"), ghost, tmp_path)


@pytest.mark.slow
def test_on_a_disk_they_do_as_well(ghost, tmp_path):
    assert soaked(tmp_path / "killed" / "base", ghost, tmp_path)


def test_a_refused_write_ends_with_a_paragraph_and_the_run_resumes_in_a_slow_store(store, ghost, tmp_path):
    workdir = store.path("denied/base")
    with store.failing("deny", "checkpoints/6"):
        one_paragraph(ghost(*tiny_base(workdir), check=False))
    with Checkpoints(workdir, keep=0, read_only=True) as checkpoints:
        assert checkpoints.latest == 4
    with store.failing("slow", "0.05"):
        ghost(*tiny_base(workdir))
    ghost(*tiny_base(tmp_path / "base"))
    assert computed(workdir) == computed(tmp_path / "base")


def test_a_bucket_that_vanishes_ends_a_run_with_a_paragraph(store, ghost):
    workdir = store.path("gone/base")
    process = ghost.start(*tiny_base(workdir, "--config.steps=2000", "--config.save_every=20"))
    wait_for(lambda: (workdir / "checkpoints/20/commit_success.txt").is_file(), 180)
    with store.failing("gone"):
        one_paragraph(ghost.finish(process, check=False))
    with Checkpoints(workdir, keep=0, read_only=True) as checkpoints:
        assert checkpoints.record(checkpoints.latest)  # complete and with its checksum


def test_data_in_a_store_are_copied_once_and_again_where_they_changed(store, tmp_path):
    source, target = store.path("data"), tmp_path / "mirror"

    def mirrored() -> dict[str, str]:
        mirror(source, target)
        return {path.name: path.read_text() for path in (target / "raw").iterdir()}

    (source / "raw/a.jsonl").write_bytes(b"1")
    (source / "raw/b.jsonl").write_bytes(b"2")
    assert mirrored() == {"a.jsonl": "1", "b.jsonl": "2"}
    before = (target / "raw/a.jsonl").stat().st_mtime_ns
    (source / "raw/b.jsonl").write_bytes(b"3")
    (source / "raw/c.jsonl").write_bytes(b"4")
    assert mirrored() == {"a.jsonl": "1", "b.jsonl": "3", "c.jsonl": "4"}
    (source / "raw/c.jsonl").unlink()
    assert mirrored() == {"a.jsonl": "1", "b.jsonl": "3"}
    assert (target / "raw/a.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="nothing-here"):
        mirror(store.path("nothing-here"), tmp_path / "empty")
    with pytest.raises(UserError, match=r"raw/a\.jsonl"):
        mirror(source / "raw/a.jsonl", tmp_path / "empty")


@pytest.mark.parametrize("name", ["/{outside}/x", "raw/../../x"])
def test_an_object_whose_name_leads_out_of_the_cache_is_refused(monkeypatch, tmp_path, name):
    found = {"bucket/data/raw/a.txt": {}, f"bucket/data/{name.format(outside=tmp_path)}": {}}
    store = SimpleNamespace(
        find=lambda *_, **__: {path: {"size": 1, "etag": "1"} for path in found},
        get_file=lambda _, to: Path(to).write_text("x"),
    )
    monkeypatch.setattr(object_store, "file_system", lambda _: store)
    with pytest.raises(UserError, match="/x cannot be copied"):
        mirror(object_store.StorePath("s3://bucket/data"), tmp_path / "mirror")
    assert not list(tmp_path.iterdir())


# ---- The lock ----


@pytest.fixture
def brief(monkeypatch):
    """Leases of two seconds."""
    monkeypatch.setattr(object_store, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(object_store, "RENEWAL_SECONDS", 0.3)


def test_a_lock_is_held_by_one_process_and_free_at_once_when_it_is_released(store, brief):
    folder = store.path("lock/held")
    refused = pytest.raises(UserError, match="taken")
    with leased(folder, "this machine", "taken"), refused, leased(folder, "another machine", "taken"):
        pass
    with leased(folder, "another machine", "taken"):
        assert [path.stem for path in (folder / "lock").glob("*.json")] == ["000002"]


@pytest.mark.parametrize(("machine", "least", "most"), [("its machine", 0.0, 1.5), ("another machine", 2.0, 60.0)])
def test_the_lock_of_a_dead_process_is_free_after_its_lease_and_at_once_on_its_own_machine(
    store, brief, machine, least, most
):
    folder = store.path(f"lock/dead to {machine}")
    content = {"owner": "dead", "machine": "its machine", "renewals": 3, "released": False}
    (folder / "lock/000007.json").write_bytes(json.dumps(content).encode())
    started = time.monotonic()
    with leased(folder, machine, "taken"):
        assert least <= time.monotonic() - started < most


def test_of_many_that_ask_at_once_one_has_the_lock_at_a_time(store, brief):
    folder, holders, most = store.path("lock/many"), [], []

    def ask(name: int) -> None:
        for _ in range(3):
            try:
                with leased(folder, f"machine {name}", "taken"):
                    holders.append(name)
                    most.append(len(holders))
                    time.sleep(0.05)
                    holders.remove(name)
            except UserError:
                pass

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_lock_that_a_newer_one_removed_is_asked_for_again(store, brief, monkeypatch):
    folder, file_system = store.path("lock/removed"), object_store.file_system

    def overtaken(path) -> SimpleNamespace:
        """Two other processes lock and release the folder before the lock 1 is made, and remove it at once."""
        fs = file_system(path)

        def pipe_file(place: str, content: bytes, **mode: str) -> None:
            fs.pipe_file(place, content, **mode)
            if mode and place.endswith("000001.json"):
                released = json.dumps({"owner": "", "machine": "", "renewals": 0, "released": True})
                fs.pipe_file(place.replace("000001", "000002"), released.encode())
                fs.rm(place)

        return SimpleNamespace(pipe_file=pipe_file, cat_file=fs.cat_file)

    monkeypatch.setattr(object_store, "file_system", overtaken)
    with leased(folder, "this machine", "taken"):
        assert [path.stem for path in (folder / "lock").glob("*.json")] == ["000003"]


def lose(url: str) -> None:
    object_store.LEASE_SECONDS, object_store.RENEWAL_SECONDS = 2.0, 0.3
    with leased(path_of(url), "this machine", "taken"):
        time.sleep(60)


def test_a_process_that_lost_its_lock_ends_at_once(store):
    folder = store.path("lock/lost")
    holder = multiprocessing.get_context("spawn").Process(target=lose, args=(str(folder),))
    holder.start()
    wait_for(lambda: (folder / "lock/000001.json").is_file(), 60)
    (folder / "lock/000002.json").write_bytes(b"{}")
    holder.join(30)
    assert holder.exitcode == 1


def test_offline_a_store_is_refused_unless_its_server_is_on_this_machine(monkeypatch):
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # restored at the end
    for server in ("", "https://s3.example.org", "http://127.0.0.1.example.org:80"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        with pytest.raises(UserError, match="GHOST_OFFLINE"):
            path_of("s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.org")  # which the client prefers
    with pytest.raises(UserError, match="GHOST_OFFLINE"):
        path_of("s3://bucket/x")
    monkeypatch.setattr(object_store, "PACKAGES", {"gs": "json"})
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:9000")
    assert str(path_of("gs://bucket/x")) == "gs://bucket/x"
