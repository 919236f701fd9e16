"""ghost_jax/parallel/distributed.py: processes start, compute what one does, stop together, and end with a lost one."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from evals.tasks import mcq
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import Items
from ghost_jax.parallel import distributed
from ghost_jax.parallel.mesh import AXES, make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.training.step import make_predict

MESHES = {"mixed": (2, 2, 2), "data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "replica": (1, 4, 1, 2)}


def losses_on(mesh: jax.sharding.Mesh) -> list[float]:
    """The losses of the first updates of a tiny model; each process feeds its own rows."""
    from tests.test_step import Run, batch_number  # it counts devices, which a process may not do before it has started

    run = Run(mesh)
    for t in range(5):
        run.update(batch_number(t), 1e-3)
    return run.losses


def predictions_on(mesh: jax.sharding.Mesh) -> list[float]:
    """A tiny model's log-probability of one token after each row."""
    from tests.test_step import TINY, Run, batch_number

    params, tokens = Run(mesh).state.params, batch_number(0)["tokens"]
    rows, length = tokens.shape
    zeros = np.zeros_like(tokens)
    batch = {"tokens": tokens, "positions": zeros + np.arange(length), "segments": zeros, "branches": zeros}
    last, target = np.full((rows, 1), length - 1), np.full((rows, 1, 1), 7)
    return np.asarray(make_predict(TINY, params, mesh)(params, batch, last, target)).ravel().tolist()


def several(ghost, *task: str, devices: int = 4):
    """Starts a task of this file as two processes by the launcher."""
    counts = ("--processes=2", f"--devices={devices}")
    return ghost.start("launch.local", *counts, "--", "python", "-m", "tests.test_hosts", *task)


@pytest.mark.parametrize(
    "name", [name if name == "mixed" else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]
)
def test_two_processes_of_four_devices_compute_the_losses_of_one(ghost, tmp_path, name):
    process = several(ghost, "losses", str(tmp_path), name)
    expected = losses_on(make_mesh(devices=jax.devices()[:1]))
    assert max(np.abs(np.diff(expected))) > 1e-3  # else any two runs would agree
    ghost.finish(process)
    for process in range(2):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert (found["main"], found["devices"]) == (process == 0, 8)
        assert found["losses"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_predictions_are_in_the_order_of_their_rows_where_the_mesh_is_not_in_process_order(ghost, tmp_path):
    ghost.finish(several(ghost, "predict", str(tmp_path)))
    expected = predictions_on(make_mesh(devices=jax.devices()[:1]))
    assert np.abs(np.diff(expected)).min() > 1e-3  # else an order could not be told from another
    for process in range(2):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found == pytest.approx(expected, abs=1e-5)


def test_all_processes_stop_after_the_same_update_when_one_is_asked(ghost, tmp_path):
    ghost.finish(several(ghost, "vote", str(tmp_path), devices=1))
    stopped = [int((tmp_path / f"{process}.txt").read_text()) for process in range(2)]
    assert stopped == [5, 5]  # process 1 is asked at update 4, and the answer comes one update late
    vote = distributed.StopVote()  # of one process
    assert [vote(False), vote(True)] == [False, True]


def computing(ghost, folder: Path) -> tuple:
    """Starts two processes that compute until they are ended; returns the launcher and their ids."""
    process = several(ghost, "forever", str(folder), devices=1)
    marks = [folder / "0", folder / "1"]
    while not all(mark.exists() for mark in marks) and process.poll() is None:
        time.sleep(0.02)
    return process, [int(mark.read_text()) for mark in marks]


@pytest.mark.parametrize(
    ("lost", "signum"),
    [(0, signal.SIGKILL), pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow), (1, signal.SIGTERM)],
)
def test_a_process_whose_peer_is_killed_ends_with_a_paragraph(ghost, tmp_path, lost, signum):
    process, ids = computing(ghost, tmp_path)
    os.kill(ids[lost], signum)
    started = time.monotonic()
    result = ghost.finish(process, check=False)
    assert time.monotonic() - started < 60
    assert f"[{lost}] ended with exit code {128 + signum}" in result.stderr
    assert f"[{1 - lost}] error: Another process of this run is gone" in result.stderr
    assert f"[{1 - lost}] ended with exit code 1" in result.stderr


@pytest.mark.slow
def test_a_process_whose_peer_hangs_ends_within_a_minute(ghost, tmp_path):
    process, ids = computing(ghost, tmp_path)
    started = time.monotonic()
    os.kill(ids[1], signal.SIGSTOP)
    printed = ""
    while "[0] ended" not in printed:  # the launcher itself waits for the process that hangs
        printed += (line := process.stderr.readline())
        assert line, printed
    waited = time.monotonic() - started
    os.kill(ids[1], signal.SIGKILL)
    ghost.finish(process, check=False)
    assert waited < 60
    assert "[0] error: Another process of this run is gone" in printed


def test_processes_with_other_data_are_refused_with_both_values(monkeypatch):
    distributed.check_same({"data": "abc", "dtype": "float32"})
    other = np.array(["abc", "bfloat16"], "S64").view(np.uint8)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.stack([mine, other]))
    with pytest.raises(UserError, match="Processes 0 and 1 of this run differ: dtype is float32 and bfloat16"):
        distributed.check_same({"data": "abc", "dtype": "float32"})


def test_processes_that_do_not_share_the_run_directory_are_refused(monkeypatch, tmp_path):
    run_dir.check_shared(tmp_path)  # no process sees a run
    monkeypatch.setattr(run_dir, "NFS_SECONDS", 0.0)
    monkeypatch.setattr(distributed, "any_process", lambda _: True)
    with pytest.raises(UserError, match="not one folder for all processes"):
        run_dir.check_shared(tmp_path)


def test_processes_with_other_items_are_refused_before_any_is_asked(monkeypatch, tmp_path):
    def refuse(values):
        raise UserError(values["items"])

    monkeypatch.setattr(mcq, "find_items", lambda *_: (Items("", "", "abc", ()), ""))
    monkeypatch.setattr(distributed, "check_same", refuse)
    with pytest.raises(UserError, match="abc"):
        mcq.evaluate_run(None, None, tmp_path, None, context=1, batch_size=1, orders="cyclic")


def _losses(folder: Path, name: str) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    losses = losses_on(make_mesh(*MESHES[name]))
    found = {"main": distributed.is_main(), "devices": jax.device_count(), "losses": losses}
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))


def _predict(folder: Path) -> None:
    by_process = np.array(jax.devices()).reshape(2, 4)
    mesh = jax.sharding.Mesh(by_process.T.reshape(1, 8, 1, 1), AXES)  # devices of the two in turn
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(predictions_on(mesh)))


def _vote(folder: Path) -> None:
    vote, update = distributed.StopVote(), 0
    while not vote(update == 4 and jax.process_index() == 1):
        update += 1
    (folder / f"{jax.process_index()}.txt").write_text(str(update))


def _forever(folder: Path) -> None:
    vote = distributed.StopVote()
    vote(False)
    distributed.barrier("all are computing")
    with distributed.end_with_peers():
        (folder / str(jax.process_index())).write_text(str(os.getpid()))
        while not vote(False):
            time.sleep(0.01)


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    distributed.start()
    {"losses": _losses, "predict": _predict, "vote": _vote, "forever": _forever}[task](folder, *sys.argv[3:])
