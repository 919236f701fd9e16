"""ghost_jax/runs/metrics.py: what is written of a run and where, and its speed by hand."""

import sys
from types import SimpleNamespace

import jax
import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.runs import metrics
from ghost_jax.runs.metrics import MEASURED, Meter, MetricsLog, measured_flops

close = pytest.approx


def log(folder, start: int, losses: dict[int, float]) -> None:
    with MetricsLog(folder, start) as opened:
        for step, loss in losses.items():
            opened.write(step, loss=loss, lr=1e-3)


def test_the_file_of_a_resumed_run_equals_that_of_an_uninterrupted_one(tmp_path):
    steady, cut = tmp_path / "steady", tmp_path / "cut"
    assert metrics.read(cut) == []
    log(steady, 0, {1: 1.0, 2: 0.5, 3: 0.4, 4: 0.3})
    log(cut, 0, {1: 1.0, 2: 0.5, 3: 9.0})
    with (cut / metrics.FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    log(cut, 2, {3: 0.4, 4: 0.3})
    assert (cut / metrics.FILE).read_bytes() == (steady / metrics.FILE).read_bytes()
    assert [line["step"] for line in metrics.read(cut)] == [1, 2, 3, 4]


def test_weights_and_biases_without_the_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails as if it were not there
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsLog(tmp_path, 0, project="ghost")
    assert not (tmp_path / metrics.FILE).exists()


def accelerators(kind: str, *peak_bytes: int) -> list:
    """Devices as JAX describes those that are not here."""
    common = {"platform": "gpu", "device_kind": kind, "process_index": 0}
    return [SimpleNamespace(**common, memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in peak_bytes]


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
    assert meter.line()["tokens_per_s"] == close(2000), "of the updates since that line"


def test_utilisation_is_of_all_chips_together_and_of_known_ones_alone():
    meter = Meter(6 * 36e6, accelerators("NVIDIA H200", 10, 30, 20), "bfloat16")
    meter.update_done(1_000_000, 1.0, 1.0)
    line = meter.line()
    assert (line["mfu"], line["memory_bytes"]) == (close(1e6 * 6 * 36e6 / (3 * 989e12)), 30)
    unknown = Meter(1e6, accelerators("Abacus 9", 10), "bfloat16")
    unknown.update_done(1000, 1.0, 1.0)
    assert set(MEASURED) - set(unknown.line()) == {"mfu"}
