"""distributed.py: processes meet, compute what one does, stop together, never wait for a lost one."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel import distributed
from ghost_jax.parallel.mesh import AXES, batch_sharding, make_mesh, micro_batch_rows
from ghost_jax.training.optimizer import adamw
from ghost_jax.training.step import make_train_step, new_state, state_shardings

pytestmark = pytest.mark.usefixtures("compile_quickly")

TINY = ModelConfig(layers=1, width=32, heads=4, mlp_dim=64, vocab_size=256, context=32)
ROWS, LENGTH, UPDATES = 16, 16, 20
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (2, 1, 4), "mixed": (2, 2, 2)}


def batch_number(t: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(t)
    tokens = rng.integers(0, TINY.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((ROWS, LENGTH), np.float32)}


def losses_on(mesh: jax.sharding.Mesh) -> list[float]:
    """The losses of the first updates of the tiny model; each process feeds its own rows."""
    optimizer = adamw(0.9, 0.95, 0.1, 1.0)
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda key: new_state(transformer.init(TINY, key), optimizer, key), jax.random.key(0))

    def draw(path, leaf):
        name = path[-1].key
        return (
            np.ones(leaf.shape, leaf.dtype) if name == "scale" else 0.02 * rng.standard_normal(leaf.shape, leaf.dtype)
        )

    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    state = state.replace(params=jax.tree_util.tree_map_with_path(draw, abstract.params))
    state = jax.tree.map(
        lambda whole, place: jax.make_array_from_callback(whole.shape, place, lambda index: np.array(whole[index])),
        state,
        state_shardings(abstract, mesh),
    )
    step = make_train_step(Transformer(TINY), optimizer, abstract, mesh, ROWS)
    losses = []
    for t in range(UPDATES):
        state, metrics = step(
            state, distributed.to_global(distributed.local_rows(batch_number(t)), batch_sharding(mesh)), 1e-3
        )
        losses.append(float(metrics["loss"]))
    return losses


def several(ghost, *task: str, processes: int = 2, devices: int = 4):
    """Starts a task of this file as several processes by the launcher."""
    counts = (f"--processes={processes}", f"--devices={devices}")
    return ghost.start("launch.local", *counts, "--", "python", "-m", "tests.test_hosts", *task)


# ---- Several processes compute what one does ----


@pytest.fixture(scope="module")
def one_device_losses() -> list[float]:
    one = jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3)
    return losses_on(one)


def test_the_model_learns_in_so_many_updates(one_device_losses):
    assert max(np.abs(np.diff(one_device_losses))) > 1e-3  # else any two runs would agree


@pytest.fixture
def eight_devices() -> None:  # not a mark: this file's own processes import it, and may not count devices so early
    if jax.device_count() != 8:
        pytest.skip("needs the 8 simulated CPU devices of conftest.py")


# Compiling for eight devices takes the time; the quick tests are those of the mesh that has everything.
EACH = [name if name == "mixed" else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("name", EACH)
def test_eight_devices_compute_the_losses_of_one(name, one_device_losses):
    assert losses_on(make_mesh(*MESHES[name])) == pytest.approx(one_device_losses, abs=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_two_processes_of_four_devices_compute_the_losses_of_one(ghost, tmp_path, one_device_losses, name):
    ghost.finish(several(ghost, "losses", str(tmp_path), name))
    for process in range(2):
        said = json.loads((tmp_path / f"{process}.json").read_text())
        assert said["main"] == (process == 0)
        assert said["devices"] == 8
        assert said["losses"] == pytest.approx(one_device_losses, abs=1e-5)


# ---- They stop together ----


def test_all_processes_stop_after_the_same_update_when_one_is_asked(ghost, tmp_path):
    ghost.finish(several(ghost, "vote", str(tmp_path), devices=1, processes=3))
    stopped = [int((tmp_path / f"{process}.txt").read_text()) for process in range(3)]
    assert stopped == [5, 5, 5]  # process 1 is asked at update 4, and the answer comes one update late


def test_one_process_alone_gets_its_own_answer_at_once():
    vote = distributed.StopVote()
    assert [vote(False), vote(True)] == [False, True]


# ---- They do not wait for a lost one ----


def computing(ghost, folder: Path) -> tuple:
    """Starts two processes that compute until they are ended; returns the launcher and their ids."""
    process = several(ghost, "forever", str(folder), devices=1)
    marks = [folder / "0", folder / "1"]
    while not all(mark.exists() for mark in marks) and process.poll() is None:
        time.sleep(0.02)
    return process, [int(mark.read_text()) for mark in marks]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_whose_peer_is_killed_ends_with_a_paragraph(ghost, tmp_path, lost):
    process, ids = computing(ghost, tmp_path)
    os.kill(ids[lost], signal.SIGKILL)
    started = time.monotonic()
    result = ghost.finish(process, check=False)
    assert time.monotonic() - started < 60
    assert f"[{lost}] ended with exit code {128 + signal.SIGKILL}" in result.stderr
    assert f"[{1 - lost}] error: Another process of this run is gone" in result.stderr
    assert f"[{1 - lost}] ended with exit code 1" in result.stderr


@pytest.mark.slow
def test_a_process_whose_peer_hangs_ends_within_a_minute(ghost, tmp_path):
    process, ids = computing(ghost, tmp_path)
    started = time.monotonic()
    os.kill(ids[1], signal.SIGSTOP)
    said = ""
    while "[0] ended" not in said:  # the launcher itself goes on waiting for the one that hangs
        said += (line := process.stderr.readline())
        assert line, said
    waited = time.monotonic() - started
    os.kill(ids[1], signal.SIGKILL)
    ghost.finish(process, check=False)
    assert waited < 60
    assert "[0] error: Another process of this run is gone" in said


# ---- Who is there ----


def test_without_others_nothing_is_started(monkeypatch):
    for name in (distributed.COORDINATOR, distributed.PROCESSES, distributed.PROCESS):
        monkeypatch.delenv(name, raising=False)
    distributed.start()
    assert not jax.distributed.is_initialized()


def test_a_slurm_job_of_one_task_starts_nothing(monkeypatch):
    values = {"JOB_ID": "7", "STEP_NODELIST": "node1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    distributed.start()
    assert not jax.distributed.is_initialized()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert distributed._detected()


def test_one_slurm_task_a_node_takes_all_its_gpus(monkeypatch):
    for name, value in {"NTASKS": "2", "STEP_NUM_NODES": "2", "GPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert distributed._slurm_devices() == [0, 1, 2, 3]
    monkeypatch.setenv("SLURM_NTASKS", "8")  # four tasks a node: JAX gives each its own
    assert distributed._slurm_devices() is None


@pytest.mark.parametrize(
    "given",
    [
        {distributed.COORDINATOR: "127.0.0.1:1234"},
        {distributed.COORDINATOR: "127.0.0.1:1234", distributed.PROCESSES: "2", distributed.PROCESS: "2"},
        {distributed.COORDINATOR: "127.0.0.1", distributed.PROCESSES: "2", distributed.PROCESS: "0"},
        {distributed.COORDINATOR: "127.0.0.1:1234", distributed.PROCESSES: "two", distributed.PROCESS: "0"},
    ],
)
def test_variables_that_contradict_each_other_are_refused(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{distributed.COORDINATOR}=127.0.0.1"):
        distributed.start()


# ---- The rows of a device ----


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "axes", "rows"),
    [
        (8, 8, (8, 1, 1), 8),
        (128, 8, (8, 1, 1), 64),
        (32, 8, (4, 2, 1), 32),
        (32, 4, (2, 2, 2), 16),
        (8, 8, (1, 1, 8), 8),
    ],
)
def test_a_micro_batch_is_given_a_device(batch_size, micro_batch_size, axes, rows):
    assert micro_batch_rows(batch_size, micro_batch_size, make_mesh(*axes)) == rows


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "named"),
    [
        (12, 8, ["batch_size=8 or 16", "mesh.tensor=2"]),
        (4, 8, ["batch_size=8", "mesh.tensor=2"]),
        (104, 8, ["micro_batch_size=1 or 13"]),
    ],
)
def test_rows_that_do_not_divide_are_refused_with_numbers_that_do(batch_size, micro_batch_size, named):
    mesh = make_mesh()
    assert tuple(mesh.shape.values()) == (8, 1, 1), "tensor parallelism is only ever asked for"
    with pytest.raises(UserError) as refusal:
        micro_batch_rows(batch_size, micro_batch_size, mesh)
    for words in named:
        assert f"--config.{words}" in str(refusal.value)


# ---- What the processes that these tests start do ----


def _losses(folder: Path, name: str) -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    said = {"main": distributed.is_main(), "devices": jax.device_count(), "losses": losses_on(make_mesh(*MESHES[name]))}
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(said))


def _vote(folder: Path) -> None:
    vote, update = distributed.StopVote(), 0
    while not vote(update == 4 and jax.process_index() == 1):
        update += 1
    (folder / f"{jax.process_index()}.txt").write_text(str(update))


def _forever(folder: Path) -> None:
    vote = distributed.StopVote()
    vote(False)
    distributed.barrier("all are computing")
    with distributed.staying_together():
        (folder / str(jax.process_index())).write_text(str(os.getpid()))
        while not vote(False):
            time.sleep(0.01)


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    distributed.start()
    {"losses": _losses, "vote": _vote, "forever": _forever}[task](folder, *sys.argv[3:])
