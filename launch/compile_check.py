"""Compiles a config's training step for TPU slices, without a TPU: does it fit, and how fast can it be?

    python -m launch.compile_check --config=configs/pretrain_base350m.py --topology=v5e:4x4 [--slices=2]

The TPU's compiler is in the package `libtpu`. The speed is a roofline: what the chip's arithmetic, memory, links or the
network between slices allow if it does nothing else; a real run is slower.
"""

import dataclasses
import importlib.util
import math
import os
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

import ghost_jax
from ghost_jax.config import load as config_lib
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import duration, make_console
from ghost_jax.core.errors import UsageError, UserError, command, parser_of, positive
from ghost_jax.core.paths import local_path
from ghost_jax.data.sources import embedded
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs.metrics import PEAK_FLOPS
from ghost_jax.text.mcq_format import LETTERS
from ghost_jax.text.tokenizer import ROLES
from ghost_jax.training.setup import TrainSetup, attention_of
from ghost_jax.training.step import abstract_params
from launch import hlo
from launch.chips import CHIPS, Chip, parse

LIBTPU = "0.0.42.1"  # the one that jax 0.10.2 asks for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(hlo.Traffic):
    """What the compiled step needs and moves; bytes and seconds are one chip's, a step."""

    config: str
    topology: str  # of a slice
    slices: int
    chips: int  # of all slices
    mesh: dict[str, int]
    attention: str  # which one the step uses, and why where it is not the chip's own kernel
    tokens: int
    # arguments, outputs, temporaries, program: bytes of memory; outputs without those that reuse an argument's
    arguments: int
    outputs: int
    temporaries: int
    program: int
    memory: int
    memory_limit: int
    flops: float  # of the matrix products of a step on all chips, by the size of the model; masked attention counts
    seconds: dict[str, float]  # the least time of arithmetic, memory, links and, where its speed is known, the network
    bound_by: str
    tokens_per_s: float
    compile_s: float
    fits: bool


def check(config: ConfigDict, topology: str, slices: int = 1) -> Report:
    """Compiles the step of a config for slices of a topology, e.g. "v5e:4x4", and returns the compiler's figures.

    Raises UsageError for a slice that does not exist, UserError where libtpu is missing or the compiler runs out of
    the chip's memory.
    """
    chip, devices = describe(topology, slices)
    mesh = make_mesh(**config.mesh, devices=devices)
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # of any accelerator; `jax_setup.fast_dtype` is this machine's
    traced, model = trace_step(config, mesh)
    started = time.monotonic()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as fault:
        if "RESOURCE_EXHAUSTED" not in str(fault):
            raise
        why = str(fault).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()[0].rstrip(".")
        raise UserError(_does_not_fit(config.spec, topology, dict(mesh.shape), why)) from None
    compile_s = time.monotonic() - started
    memory, moved = compiled.memory_analysis(), hlo.traffic(compiled.as_text(), len(devices) // slices, slices)
    tokens = config.batch_size * config.data.seq_len
    # With remat the forward pass, a third of the work, is computed twice.
    flops = tokens * model.flops_per_token(config.data.seq_len) * (4 / 3 if model.remat else 1)
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    seconds = {
        # The peak of bfloat16, of float32 too: on a TPU JAX rounds the factors of products to bfloat16 by default.
        "arithmetic": flops / len(devices) / PEAK_FLOPS[chip.kind],
        "memory": moved.hbm_bytes / chip.hbm_bytes_per_s,
        "links": moved.sent_bytes / chip.ici_bytes_per_s,
    }
    if moved.across and chip.dcn_bytes_per_s:
        seconds["network"] = moved.dcn_bytes / chip.dcn_bytes_per_s
    return Report(
        config=config.spec,
        topology=topology,
        slices=slices,
        chips=len(devices),
        mesh=dict(mesh.shape),
        attention=str(attention_of(config, mesh)),
        tokens=tokens,
        **parts,
        memory=sum(parts.values()),
        memory_limit=chip.hbm_bytes,
        flops=flops,
        **dataclasses.asdict(moved),
        seconds=seconds,
        bound_by=max(seconds, key=seconds.get),
        tokens_per_s=tokens / max(seconds.values()),
        compile_s=compile_s,
        fits=sum(parts.values()) <= chip.hbm_bytes,
    )


def describe(topology: str, slices: int = 1) -> tuple[Chip, Sequence[jax.Device]]:
    """Returns the chip and the devices of slices, one a chip, without them. Raises as `check`."""
    generation, sides = parse(topology)
    chip, chips = CHIPS[generation], math.prod(sides)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler is not installed: it is in the package libtpu, which needs no TPU. Install the release "
            f"that fits the pinned JAX with: {sys.executable} -m pip install libtpu=={LIBTPU}"
        )
    jax.config.update("jax_platforms", "cpu")  # there is no TPU to find
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # do not ask the metadata server of Google's cloud
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two compilers may run at once
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": chip.type_name.format(chips, 2 * chips),
    }
    # The two cores of a v4 chip are one device; for a v5p chip the compiler assumes that.
    cores = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        named = {"platform": "tpu", "topology_name": topology, "num_slices": slices}
        devices = topologies.get_topology_desc(**named, **cores).devices
    except jax.errors.JaxRuntimeError as fault:
        raise UsageError(
            f"The TPU compiler refuses the slice {topology} ({str(fault).splitlines()[0]}). The slices on offer are in "
            "the Cloud TPU documentation, on the page of each generation."
        ) from None
    return chip, devices


def trace_step(config: ConfigDict, mesh: Mesh) -> tuple["jax.stages.Traced", ModelConfig]:
    """Returns the traced training step of a config: its optimizer, objective and batch, without data; and its model."""
    chat = config.stage == "chat"
    grown = len(ROLES) + len(embedded.anchors()) if chat else 0
    setup = TrainSetup(config, config.model.vocab_size + grown, mesh)
    step = setup.make_step(np.arange(len(LETTERS)) if chat else None)  # any ids: the work is the same
    fields = ["tokens", "targets", "weights"]
    fields += ["positions", "segments"] if config.data.packing else []
    fields += ["letters"] if setup.objective.get("letter") else []
    fields += ["branches", "ranked"] if setup.objective.get("ranking") else []
    shape = (config.batch_size, config.data.seq_len)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "weights" else jnp.int32) for name in fields}
    frozen = [abstract_params(setup.model.config)] if setup.lora else []
    return step.trace(setup.abstract, batch, config.optim.peak_lr, *frozen), setup.model.config


def _does_not_fit(spec: str, topology: str, mesh: dict[str, int], why: str) -> str:
    most = mesh["data"] * mesh["fsdp"]
    split = f"Split the state over more chips (--config.mesh.data=1 --config.mesh.fsdp={most}), lower"
    return (
        f"{spec} does not fit a chip of {topology} on the mesh {_axes(mesh)}: {why}. "
        f"{split if mesh['data'] > 1 else 'Lower'} --config.micro_batch_size, or name a larger slice."
    )


def _axes(mesh: dict[str, int]) -> str:
    return ", ".join(f"{axis}={count}" for axis, count in mesh.items())


def table(report: Report) -> Table:
    """Returns the report as a table."""
    share = report.memory / report.memory_limit
    rows = {
        "chips, mesh": f"{report.chips}: {_axes(report.mesh)}",
        "attention": report.attention,
        "memory a chip": f"{_bytes(report.memory)} of {_bytes(report.memory_limit)} ({share:.1%})",
        "  arguments": _bytes(report.arguments),
        "  outputs beside them": _bytes(report.outputs),
        "  temporaries": _bytes(report.temporaries),
        "  program": _bytes(report.program),
        "matrix products a step": f"{report.flops:.3g} FLOPs",
    }
    for kind, (count, size) in report.collectives.items():
        rows[f"{kind} a step"] = f"{count:,} of {_bytes(size)} together"
    for kind, (count, size) in report.across.items():
        rows[f"{kind} across slices"] = f"{count:,} of {_bytes(size)} together, by each chip"
    if report.across:
        out = report.dcn_bytes * report.chips / report.slices
        rows["network between slices"] = f"{_bytes(report.dcn_bytes)} a step from a chip, {_bytes(out)} from a slice"
        if "network" not in report.seconds:
            rows["network between slices"] += "; its speed is not published and not in the estimate"
    rows |= {f"{part} needs at least": f"{1e3 * s:.3g} ms a step" for part, s in report.seconds.items()}
    rows["at most"] = f"{report.tokens_per_s:,.0f} tokens/s ({report.tokens:,} a step), bound by {report.bound_by}"
    rows["compiled in"] = duration(report.compile_s)
    several = f"{report.slices} x " if report.slices > 1 else ""
    shown = Table(title=f"{report.config} on {several}{report.topology}", show_header=False)
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.2f} KiB"


@command
def main(argv: Sequence[str]) -> int:
    """Compiles a config's training step for TPU slices, without a TPU: memory, collectives, a roofline."""
    parser = parser_of(main)
    parser.add_argument("--topology", required=True, metavar="SLICE", help="v5e:4x4, v6e:4x4, v4:2x2x4, v5p:4x4x4, …")
    parser.add_argument("--slices", type=positive, default=1, metavar="N", help="slices of this shape (default: 1)")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="also write the report as JSON")
    config, flags = config_lib.parse(parser, argv)
    report = check(config, flags.topology, flags.slices)
    make_console().print(table(report))
    if flags.out:
        write_json(flags.out, {"ghost_jax": ghost_jax.__version__} | dataclasses.asdict(report))
    if not report.fits:
        needs = f"it needs {_bytes(report.memory)} of {_bytes(report.memory_limit)}"
        raise UserError(_does_not_fit(config.spec, flags.topology, report.mesh, needs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
