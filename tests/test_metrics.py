"""ghost_jax/runs: metrics, the estimate of a run's time, and which validation losses are a divergence."""

import itertools
import math
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.model.config import SIZES
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import logger, metrics, plan
from ghost_jax.runs.logger import divergence
from ghost_jax.runs.metrics import MEASURED, Meter, MetricsLog, measured_flops
from tests.conftest import ROOT

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


def test_a_run_that_was_copied_from_a_store_keeps_its_lines(tmp_path):
    (tmp_path / metrics.PARTS).mkdir()
    (tmp_path / metrics.PARTS / "0000000001.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 9.0}\n')
    for start in (1, 2):
        log(tmp_path, start, {start + 1: 0.5})
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_weights_and_biases_are_named_where_they_are_missing_and_stay_here_offline(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails as if it were not there
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsLog(tmp_path, 0, project="ghost")
    assert not (tmp_path / metrics.FILE).exists()
    monkeypatch.setitem(sys.modules, "wandb", wandb := MagicMock())
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    with MetricsLog(tmp_path, 0, project="ghost") as written:
        assert wandb.init.call_args.kwargs["mode"] == "offline"
        written.write(1, loss=2.0)
    assert wandb.init.return_value.log.call_args.args[0]["loss"] == 2.0


def accelerators(kind: str, *peak_bytes: int) -> list:
    common = {"platform": "gpu", "device_kind": kind, "process_index": 0}
    return [SimpleNamespace(**common, memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in peak_bytes]


def test_rates_are_over_all_updates_since_the_last_line():
    meter = Meter(2e6, jax.devices(), "float32")
    meter.add(waited=0.25, tokens=1000, supervised=300.0, seconds=1.0)
    meter.add(waited=0.5, tokens=1000, supervised=100.0, seconds=3.0)
    line = meter.line()
    assert tuple(line) == MEASURED
    assert line["tokens_per_s"] == close(500)
    assert line["supervised_tokens_per_s"] == close(100)
    assert line["mfu"] == close(500 * 2e6 / measured_flops("float32"))
    assert line["data_wait_s"] == close(0.75)
    meter.add(tokens=1000, supervised=50.0, seconds=0.5)
    assert meter.line()["tokens_per_s"] == close(2000), "of the updates since that line"
    assert not {"tokens_per_s", "mfu"} & meter.line().keys(), "of no update"


def test_the_seconds_up_to_a_line_without_a_rate_are_by_the_last_one():
    lines = [{"step": 1, "tokens_per_s": 8.0}, {"step": 11, "tokens_per_s": 80.0}, {"step": 21}]
    assert metrics.seconds_of(lines, tokens=8) == [1, 2, 3]


def test_utilisation_is_of_all_chips_together_and_of_known_ones_alone():
    meter = Meter(6 * 36e6, accelerators("NVIDIA H200", 10, 30, 20), "bfloat16")
    meter.add(tokens=1_000_000, supervised=1.0, seconds=1.0)
    line = meter.line()
    assert (line["mfu"], line["memory_bytes"]) == (close(1e6 * 6 * 36e6 / (3 * 989e12)), 30)
    unknown = Meter(1e6, accelerators("Abacus 9", 10), "bfloat16")
    unknown.add(tokens=1000, supervised=1.0, seconds=1.0)
    assert set(MEASURED) - set(unknown.line()) == {"mfu"}


RECORDED = (3.175, 3.285, 3.403)  # of the study's run that was stopped by hand at update 300
nan, inf = math.nan, math.inf


def lines(*losses: float, share: float = 1.0) -> list[dict]:
    """The metrics of a run that evaluates every 100 updates and logs once in between."""
    evaluated = [{"step": 100 * i, "loss": 3.0, "val_loss": x, "val_share": share} for i, x in enumerate(losses, 1)]
    between = [{"step": 100 * i + 50, "loss": 9.0} for i in range(len(losses))]
    return sorted(evaluated + between, key=lambda line: line["step"])


def test_a_loss_over_fewer_records_does_not_count():
    assert divergence(lines(*RECORDED, share=0.5), 3) is None
    assert divergence(lines(3.0, nan, share=0.5), 3) is not None, "one that is not finite counts always"
    assert divergence([{"step": i, "val_loss": loss} for i, loss in enumerate(RECORDED)], 3) is None
    full, sample = lines(*RECORDED), {"step": 250, "val_loss": 2.0, "val_share": 0.1}
    assert divergence([*full[:4], sample, *full[4:]], 3) is not None
    assert divergence([*full, sample | {"step": 350, "val_loss": 9.0}], 3) is None, "the newest one decides"


# Quarters, so that equal losses are common.
losses = st.lists(st.integers(0, 12).map(lambda quarters: quarters / 4) | st.sampled_from([nan, inf]), max_size=8)


@given(losses, st.integers(2, 5))
def test_a_divergence_is_a_tail_of_strictly_rising_losses_or_one_that_is_not_finite(values, evaluations):
    tail = values[-evaluations:]
    rising = len(tail) == evaluations and all(b > a or not math.isfinite(b) for a, b in itertools.pairwise(tail))
    diverged = rising or bool(values and not math.isfinite(values[-1]))
    assert (divergence(lines(*values), evaluations) is not None) == diverged


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


JOURNAL = {"steps": 9, "batch_size": 8, "data": {"seq_len": 8}, "log_every": 99, "log": {"wandb": ""}}
WATCH = {"divergence": {"evaluations": 2, "stop": False}}


def test_rates_are_of_updates_alone_and_a_rise_is_reported_once(tmp_path, monkeypatch, capsys):
    now = 0.0

    def later(seconds: float, result=None):
        nonlocal now
        now += seconds
        return result

    class Loss:
        """One of an update that takes a second, waited for."""

        def __float__(self) -> float:
            return later(1.0, 3.0)

    monkeypatch.setattr(logger, "time", SimpleNamespace(perf_counter=lambda: now))
    figures = {update: {"val_loss": float(update), "val_share": 1.0} for update in (4, 6)}
    figures |= {3: {"accuracy": 0.5}, 7: {"accuracy": 0.5}}
    with logger.Journal(ConfigDict(JOURNAL | WATCH), tmp_path, 2, SIZES["nano"], make_mesh()) as journal:
        for update in range(3, 9):
            journal.next_batch(itertools.repeat({}))
            later(50.0 if update == 3 else 0.0)  # a resumed run compiles again
            journal.dispatched(update, 1e-3, {"loss": Loss(), "supervised": 4.0})
            if update in figures:
                journal.settle(lambda update=update: later(7.0, figures[update]))
                later(9.0)  # a save
    rates = [(line["step"], line.get("tokens_per_s")) for line in metrics.read(tmp_path)]
    assert rates == [(3, None), (4, 64), (6, 64), (7, 64)]
    assert capsys.readouterr().out.count("WARNING") == 1


@pytest.mark.parametrize(
    "damaged", [b'{"step": 2, "loss": 1.\xb0}', b"2", b'{"step": "2"}', b'{"loss": 1}', b"[" * 100_000], ids=range(5)
)
def test_a_damaged_line_is_left_out_alone(tmp_path, damaged):
    (tmp_path / metrics.FILE).write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 3]


def test_the_simulated_devices_of_a_process_make_no_run_shorter(monkeypatch):
    config = config_lib.load(f"{ROOT}/configs/pretrain_v05.py:nano")
    monkeypatch.setattr(metrics, "measured_flops", lambda dtype: 1e9)
    together = plan.estimated_seconds(config)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    assert together == plan.estimated_seconds(config)
