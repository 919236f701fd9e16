"""ghost_jax/runs/metrics.py: what is written of a run and where, its speed by hand, and a real profiler trace."""

import gzip
import json
import math
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from ghost_jax.core.errors import UserError
from ghost_jax.model.config import SIZES
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import logger, metrics
from ghost_jax.runs.metrics import MEASURED, Meter, MetricsLog, measured_flops
from ghost_jax.training.loop import profiled

close = pytest.approx


def test_the_file_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path):
    steady, cut = tmp_path / "steady", tmp_path / "cut"
    assert metrics.read(cut) == []
    with MetricsLog(steady, 0) as log:
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
    assert (cut / metrics.FILE).read_bytes() == (steady / metrics.FILE).read_bytes()
    assert [line["step"] for line in metrics.read(cut)] == [1, 2, 3, 4, 5]


def test_weights_and_biases_without_the_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails as if it were not there
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsLog(tmp_path, 0, project="ghost")
    assert not (tmp_path / metrics.FILE).exists()


def accelerators(kind: str, *peak_bytes: int) -> list:
    """Devices as JAX describes those that are not here."""
    return [
        SimpleNamespace(
            platform="gpu", device_kind=kind, process_index=0, memory_stats=lambda n=n: {"peak_bytes_in_use": n}
        )
        for n in peak_bytes
    ]


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
    meter.update_done(1000, 50.0, 0.5)
    line = meter.line()
    assert (line["tokens_per_s"], line["supervised_tokens_per_s"], line["data_wait_s"]) == close((2000, 100, 0))


def test_utilisation_is_measured_against_all_chips_together():
    meter = Meter(6 * 36e6, accelerators("NVIDIA H200", 10, 30, 20), "bfloat16")
    meter.update_done(1_000_000, 1.0, 1.0)
    line = meter.line()
    assert line["mfu"] == close(1e6 * 6 * 36e6 / (3 * 989e12))
    assert line["memory_bytes"] == 30
    unknown = Meter(1e6, accelerators("Abacus 9", 10), "bfloat16")
    unknown.update_done(1000, 1.0, 1.0)
    assert set(MEASURED) - set(unknown.line()) == {"mfu"}


def test_the_trace_holds_the_update_asked_for(tmp_path):
    @jax.jit
    def one_update(x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ x)

    before = one_update(one_update(jnp.ones((64, 64))))
    found = profiled(one_update, tmp_path / "trace")(before)
    assert (found == one_update(before)).all()
    (file,) = (tmp_path / "trace").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert any("one_update" in event.get("name", "") for event in events)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_a_value_that_is_not_finite_is_null_in_the_file(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, loss=2.0, grad_norm=math.inf, val_loss=math.nan)
    (line,) = (tmp_path / metrics.FILE).read_text().splitlines()
    assert line == '{"step": 1, "loss": 2.0, "grad_norm": null, "val_loss": null}'
    (read,) = metrics.read(tmp_path)
    assert math.isnan(read["val_loss"])


def test_the_main_process_drops_lines_after_all_have_read_them(tmp_path, monkeypatch):
    config = ConfigDict({"steps": 2, "data": {"seq_len": 8}, "log": {"wandb": ""}})
    (tmp_path / metrics.FILE).write_text('{"step": 1}\n{"step": 2}\n')
    seen = []
    monkeypatch.setattr(logger, "barrier", lambda _: seen.append(len(metrics.read(tmp_path))))
    with logger.Journal(config, tmp_path, 1, SIZES["nano"], make_mesh()):
        assert (seen, len(metrics.read(tmp_path))) == ([2], 1)
