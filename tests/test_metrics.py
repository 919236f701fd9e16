"""ghost_jax/runs/metrics.py: what is written of a run and where, its speed by hand, and a real profiler trace."""

import gzip
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from ghost_jax.core.errors import UserError
from ghost_jax.runs import metrics
from ghost_jax.runs.device_specs import PEAK_FLOPS
from ghost_jax.runs.metrics import MEASURED, Meter, MetricsLog, Trace, measured_flops, memory_bytes, peak_flops

close = pytest.approx


def events(workdir: Path) -> Iterator[Event]:
    """What TensorBoard reads: records of a length, its checksum, an event and the event's checksum."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            yield Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4


# ---- The log ----


def test_a_resumed_file_reads_like_that_of_one_run(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with MetricsLog(whole, 0) as log:
        for step in range(1, 6):
            log.write(step, loss=1 / step, lr=1e-3)
    with MetricsLog(cut, 0) as log:
        for step in range(1, 4):
            log.write(step, loss=1 / step if step < 3 else 9.0, lr=1e-3)
    with (cut / metrics.FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with MetricsLog(cut, 2) as log:
        for step in range(3, 6):
            log.write(step, loss=1 / step, lr=1e-3)
    assert (cut / metrics.FILE).read_bytes() == (whole / metrics.FILE).read_bytes()
    assert [line["step"] for line in metrics.read(cut)] == [1, 2, 3, 4, 5]


def test_tensorboard_holds_the_same_figures_as_the_file(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, loss=3.5, **{"grad_norm/block_0": 0.25})
        log.write(2, loss=3.25)
    shown = {(event.step, value.tag): value.simple_value for event in events(tmp_path) for value in event.summary.value}
    written = {(line["step"], key): line[key] for line in metrics.read(tmp_path) for key in line if key != "step"}
    assert shown == written


def test_a_run_without_metrics_has_no_lines(tmp_path):
    assert metrics.read(tmp_path) == []


# ---- Weights & Biases ----


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The real package, if it is installed, in a home where nobody is logged in."""
    module = pytest.importorskip("wandb", reason="the optional package wandb is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    yield module
    module.teardown()  # it reads its environment once a session


def test_weights_and_biases_gets_what_the_file_gets(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir, asked = tmp_path / "run", {"project": "ghost", "name": "tiny", "config": {"optim": {"peak_lr": 0.001}}}
    with MetricsLog(workdir, 0, **asked) as log:
        log.write(1, loss=3.5, val_loss=3.4375)
    with MetricsLog(workdir, 1, **asked) as log:
        log.write(2, loss=3.25)
    first, resumed = sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))
    content = first.read_bytes()
    assert all(word in content for word in (b"ghost", b"tiny", b"peak_lr", b"val_loss", b"3.4375"))
    assert b"3.25" in resumed.read_bytes()
    assert first.name == resumed.name, "a resumed run is the same run there"
    assert [line["loss"] for line in metrics.read(workdir)] == [3.5, 3.25]


def test_who_is_not_logged_in_is_told_what_to_do(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, loss=3.5)
    with pytest.raises(UserError, match=r"log\.wandb=ghost.*`wandb login`.*WANDB_MODE=offline"):
        MetricsLog(tmp_path, 0, project="ghost")
    assert len(metrics.read(tmp_path)) == 1, "nothing was dropped"


def test_without_the_package_the_user_is_told_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails as if it were not there
    with pytest.raises(UserError, match="-m pip install wandb"):
        MetricsLog(tmp_path, 0, project="ghost")
    assert not (tmp_path / metrics.FILE).exists()


# ---- Speed ----


def test_rates_are_over_all_updates_since_the_last_line():
    meter = Meter(2e6, jax.devices(), "float32")
    meter.batch_waited(0.25)
    meter.update_done(1000, 300.0, 1.0)
    meter.batch_waited(0.5)
    meter.update_done(1000, 100.0, 3.0)
    line = meter.line()
    assert tuple(line) == MEASURED
    assert line["tokens_per_s"] == close(500)
    assert line["supervised_tokens_per_s"] == close(100)
    assert line["mfu"] == close(500 * 2e6 / measured_flops("float32"))
    assert line["data_wait_s"] == close(0.75)
    assert line["memory_bytes"] == memory_bytes(jax.devices())

    meter.update_done(1000, 50.0, 0.5)
    line = meter.line()
    assert (line["tokens_per_s"], line["supervised_tokens_per_s"], line["data_wait_s"]) == close((2000, 100, 0))


def accelerators(kind: str, *peak_bytes: int) -> list:
    """Devices as JAX describes those that are not here."""
    return [
        SimpleNamespace(
            platform="gpu", device_kind=kind, process_index=0, memory_stats=lambda n=n: {"peak_bytes_in_use": n}
        )
        for n in peak_bytes
    ]


def test_utilisation_is_measured_against_all_chips_together():
    meter = Meter(6 * 36e6, accelerators("NVIDIA H200", 10, 30, 20), "bfloat16")
    meter.update_done(1_000_000, 1.0, 1.0)
    line = meter.line()
    assert line["mfu"] == close(1e6 * 6 * 36e6 / (3 * 989e12))
    assert line["memory_bytes"] == 30


def test_a_chip_that_nobody_knows_has_no_utilisation():
    meter = Meter(1e6, accelerators("Abacus 9", 10), "bfloat16")
    meter.update_done(1000, 1.0, 1.0)
    assert set(MEASURED) - set(meter.line()) == {"mfu"}


def test_peaks_are_dense_flops_a_second():
    assert all(20e12 < peak < 3e15 for peak in PEAK_FLOPS.values())
    assert PEAK_FLOPS["TPU v5 lite"] == 197e12


def test_simulated_devices_share_the_cores_of_their_process():
    assert len(jax.devices()) > 1
    assert (
        peak_flops(jax.devices(), "float32")
        == peak_flops(jax.devices()[:1], "float32")
        == measured_flops("float32")
        > 1e8
    )


def test_memory_on_the_cpu_is_the_most_that_the_process_held():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the system does not tell a process its peak memory in /proc")
    (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    assert memory_bytes(jax.devices()) == close(int(peak.split()[1]) * 1024, rel=0.02)


# ---- The profiler ----


def run(workdir: Path, at: int, updates: int, last: int = 8) -> int:
    """Runs `last` updates with a trace; returns how many events of the trace name the update's function."""

    @jax.jit
    def one_update(x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ x)

    x = one_update(jnp.ones((64, 64)))
    with Trace(workdir, at, updates) as trace:
        for update in range(1, last + 1):
            trace.before(update, x)
            x = one_update(x)
    files = list((workdir / "trace").rglob("*.trace.json.gz"))
    assert len(files) <= 1
    return sum("one_update" in event.get("name", "") for file in files for event in read_trace(file))


def read_trace(path: Path) -> list[dict]:
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_the_trace_holds_the_updates_asked_for(tmp_path):
    of_one = run(tmp_path / "one", at=4, updates=1)
    assert of_one > 0
    assert list((tmp_path / "one" / "trace").rglob("*.xplane.pb"))
    assert run(tmp_path / "three", at=4, updates=3) == 3 * of_one
    assert run(tmp_path / "end", at=7, updates=3) == 2 * of_one, "the run ended inside"


@pytest.mark.parametrize("at", [0, 9])
def test_no_trace_is_written_where_none_is_due(tmp_path, at):
    assert run(tmp_path, at, updates=3) == 0
    assert not (tmp_path / "trace").exists()


def fail_while_traced(workdir: Path) -> None:
    with Trace(workdir, 1) as trace:
        trace.before(1, None)
        raise KeyboardInterrupt


def test_a_run_that_fails_while_it_is_traced_leaves_the_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_while_traced(tmp_path)
    assert list(tmp_path.rglob("*.xplane.pb"))
