"""What a run measures, and where it is written: metrics.jsonl and TensorBoard always, Weights & Biases on request.

An object store cannot append: there the lines are in numbered parts, `metrics/000000001.jsonl` and so on, each named by
the first update in it.
"""

import contextlib
import functools
import json
import math
import resource
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tensorboardX import SummaryWriter

from ghost_jax.core.addresses import is_offline
from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError
from ghost_jax.core.object_store import is_remote, upload

FILE, PARTS = "metrics.jsonl", "metrics"
PART_SECONDS = 60.0  # from one part to the next, at most
# What depends on the clock or the machine; the rest of a line is equal whenever and wherever the run is repeated.
MEASURED = ("tokens_per_s", "supervised_tokens_per_s", "mfu", "memory_bytes", "data_wait_s")

# Dense bfloat16 FLOP/s by the kind that JAX gives a device, from the makers' data sheets. On TPU v2, v3 and v7x JAX's
# device is half a chip.
PEAK_FLOPS = {
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU7x": 1153.5e12,
    "Tesla T4": 65e12,  # float16, as on the V100: neither has bfloat16
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GeForce RTX 3090": 71e12,  # summed in float32, as JAX does; these cards sum faster in float16
    "NVIDIA GeForce RTX 4090": 165e12,
}


class MetricsLog:
    """Appends to the metrics of a run. Use as a context manager, in one process of a run.

    Lines after `start_step`, of an interrupted run, are dropped: the file of a resumed run equals that of an
    uninterrupted one.

    Args:
      project: of Weights & Biases; "" for none. Its environment variables apply, such as WANDB_MODE=offline.
    """

    def __init__(self, workdir: Path, start_step: int, *, project: str = "", config: Mapping | None = None):
        self._wandb = _wandb_run(workdir, project, config or {}) if project else None  # before lines are dropped
        self._workdir, self._remote = workdir, is_remote(workdir)
        kept = [line for line in read(workdir) if line["step"] <= start_step]
        if self._remote:
            older = sorted((workdir / PARTS).glob("*.jsonl"))
            self._write_part(kept)  # before the others go; `read` drops a line that stands in two
            for path in older[1 if kept else 0 :]:
                path.unlink()
        else:
            write_text(workdir / FILE, _jsonl(kept))
            for path in (workdir / PARTS).glob("*.jsonl"):  # of a run that was copied from a store
                path.unlink()
        self._events = Path(tempfile.mkdtemp()) if self._remote else workdir / "tensorboard"
        self._board = SummaryWriter(str(self._events), purge_step=start_step + 1, flush_secs=10)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, fault: type[BaseException] | None, *_) -> None:
        try:
            self.flush()
        finally:
            self._board.close()
            if self._remote:
                shutil.rmtree(self._events)
        if self._wandb:
            self._wandb.finish(exit_code=int(fault is not None))

    def flush(self) -> None:
        """Writes what is held back; call it before a checkpoint is saved."""
        if self._remote:
            self._write_part(self._held)
            self._board.flush()
            upload(self._events, self._workdir / "tensorboard")

    def write(self, step: int, **values: float) -> None:
        """Writes one line: `step` is the number of updates done."""
        line = {"step": step, **values}
        if self._remote:
            self._held.append(line)
            if time.monotonic() - self._written > PART_SECONDS:
                self._write_part(self._held)
        else:
            with (self._workdir / FILE).open("a", encoding="utf-8") as file:
                file.write(_jsonl([line]))
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(line)

    def _write_part(self, lines: list[dict]) -> None:
        if lines:
            write_text(self._workdir / PARTS / f"{lines[0]['step']:09}.jsonl", _jsonl(lines))
        self._held, self._written = [], time.monotonic()


def _jsonl(lines: list[dict]) -> str:
    """Returns lines as JSON, which has no NaN and no infinite number: null."""
    finite = ({name: value if math.isfinite(value) else None for name, value in line.items()} for line in lines)
    return "".join(json.dumps(line) + "\n" for line in finite)


def _wandb_run(workdir: Path, project: str, config: Mapping) -> Any:
    """Starts a run of Weights & Biases, or resumes the one that the run directory names."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "log.wandb names a project of Weights & Biases, but the package wandb is not installed. Install it with "
            f"`{sys.executable} -m pip install wandb`, or leave log.wandb empty: metrics.jsonl and TensorBoard hold "
            "the same figures."
        ) from None
    known = workdir / "wandb" / "id"
    if not known.is_file():
        write_text(known, uuid.uuid4().hex[:8])
    try:
        run = wandb.init(
            project=project,
            name=workdir.name,
            id=known.read_text(encoding="utf-8"),
            config=dict(config),
            dir=tempfile.gettempdir() if is_remote(workdir) else workdir,
            resume="allow",
            mode="offline" if is_offline() else None,
            settings=wandb.Settings(console="off"),  # it would read the terminal that the progress bar draws on
        )
    except wandb.errors.Error as fault:
        reason = str(fault).rstrip(".")
        raise UserError(
            f"Weights & Biases, asked for by log.wandb={project}, cannot start: {reason}. Log in with `wandb "
            "login`, or set WANDB_MODE=offline and upload later with `wandb sync`, or leave log.wandb empty."
        ) from None
    run.define_metric("*", step_metric="step")  # its own counter would drop the updates that a resumed run repeats
    return run


def read(workdir: Path) -> list[dict]:
    """Returns the lines of a run's metrics, without damaged or incomplete ones; what is not finite is NaN."""
    paths = sorted((workdir / PARTS).glob("*.jsonl")) or [workdir / FILE]
    with ThreadPoolExecutor() as pool:  # a store answers many requests at once, each after a while
        parts = list(pool.map(lambda path: path.read_bytes() if path.is_file() else b"", paths))
    lines = []
    for text in b"".join(parts).splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            line = json.loads(text)
            if line["step"] > (lines[-1]["step"] if lines else -1):
                lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def seconds_of(lines: Sequence[Mapping], tokens: int) -> list[float]:
    """Returns the seconds of training up to each line, by its rate or the last known one; an update has `tokens`."""
    spent, step, rate, found = 0.0, 0, math.nan, []
    for line in lines:
        rate = line.get("tokens_per_s", rate)
        spent, step = spent + (line["step"] - step) * tokens / rate, line["step"]
        found.append(spent)
    return found


class Meter:
    """Speed and cost of a run from one logged line to the next.

    Args:
      flops_per_token: floating-point operations of a training step a token.
    """

    def __init__(self, flops_per_token: float, devices: Sequence[jax.Device], dtype: str):
        self._flops_per_token, self._devices = flops_per_token, devices
        self._peak = peak_flops(devices, dtype)
        self._sums: Counter[str] = Counter()

    def add(self, **measured: float) -> None:
        """Adds an update's `tokens`, those `supervised`, its `seconds`, and those that it `waited` for its batch."""
        self._sums.update(measured)

    def line(self) -> dict[str, float]:
        """Returns `MEASURED` over the updates added since the last line.

        Speeds are absent where none was added, and `mfu` also where the chip's peak is not known.

        Model FLOP utilisation is the work of the model's arithmetic over the peak of the devices.
        """
        sums, self._sums = self._sums, Counter()
        measured = {}
        if sums["seconds"]:
            rate = sums["tokens"] / sums["seconds"]
            measured = {"tokens_per_s": rate, "supervised_tokens_per_s": sums["supervised"] / sums["seconds"]}
            if self._peak is not None:
                measured["mfu"] = rate * self._flops_per_token / self._peak
        return measured | {"memory_bytes": memory_bytes(self._devices), "data_wait_s": sums["waited"]}


def peak_flops(devices: Sequence[jax.Device], dtype: str) -> float | None:
    """Returns the peak FLOP/s of devices of one kind together, or None for a kind that is not in the table.

    Accelerators: dense bfloat16, whatever the run computes in. CPU: `dtype` as measured here, once a process, because
    the simulated devices of a process share its cores.
    """
    if devices[0].platform == "cpu":
        return measured_flops(dtype) * len({device.process_index for device in devices})
    peak = PEAK_FLOPS.get(devices[0].device_kind)
    return None if peak is None else peak * len(devices)


def memory_bytes(devices: Sequence[jax.Device]) -> int:
    """Returns the peak bytes of any device of this process; on the CPU the peak of the process itself."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    peaks = [stats["peak_bytes_in_use"] for device in here if (stats := device.memory_stats())]
    if peaks:
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def measured_flops(dtype: str) -> float:
    """Measures the FLOP/s of one device on a large product of `dtype` with a float32 result, for half a second."""
    size = 1024
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    multiply(x).block_until_ready()
    best, end = 0.0, time.perf_counter() + 0.5
    while time.perf_counter() < end:
        started = time.perf_counter()
        multiply(x).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best
