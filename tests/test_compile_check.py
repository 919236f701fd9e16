"""launch/compile_check.py: what a compiled step needs and moves, from real compilations."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import FAILED, UsageError
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs.metrics import PEAK_FLOPS
from launch import compile_check, hlo
from launch.chips import CHIPS
from launch.compile_check import describe, trace_step
from tests.conftest import ROOT, set_all
from tests.models import needs_eight

LIBTPU = importlib.util.find_spec("libtpu")
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="the TPU compiler is not installed: pip install libtpu==0.0.42.1")
SMALL = {"layers": 1, "width": 128, "heads": 2, "mlp_dim": 128, "vocab_size": 512}
ARRAY = 64 * 32 * 4  # bytes of the array that the collectives below move


def moved(function, source: P, result: P) -> hlo.Traffic:
    mesh = make_mesh(2, 4, 1)
    places = {"in_shardings": NamedSharding(mesh, source), "out_shardings": NamedSharding(mesh, result)}
    array = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    return hlo.traffic(jax.jit(function, **places).lower(array).compile().as_text(), 8)


@needs_eight
def test_collectives_are_counted_as_often_as_they_happen_with_what_each_chip_sends():
    gathered = moved(lambda x: x * 2, P("fsdp"), P())
    assert (gathered.collectives, gathered.sent_bytes) == ({"all-gather": (1, ARRAY)}, ARRAY * 3 / 4)
    summed = moved(lambda x: x.sum(0), P("data"), P())
    assert (summed.collectives, summed.sent_bytes) == ({"all-reduce": (1, 32 * 4)}, 2 * 32 * 4 * 1 / 2)

    def once(_, x):  # the sum differs each time, so that it cannot be moved out of the loop
        return jnp.sin(x) + jnp.sin(x).sum(0)

    looped = moved(lambda x: jax.lax.fori_loop(0, 7, once, x), P("fsdp"), P("fsdp"))
    assert looped.collectives["all-reduce"] == (7, 7 * 32 * 4)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true", 2),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=4], device_ids=([2,8]T(1,0)) {'a','c'}, dimensions={1}", 8),
        ("replica_groups={}", 16),
    ],
)
def test_groups_are_read_in_each_of_their_forms(written, size):
    assert hlo.group_size(written, 16) == size


CROSSING = """
ENTRY %main (p: f32[64,32]) -> f32[64,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %sum = f32[64,32]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %order = token[] after-all()
  %send = (f32[64,32]{1,0}, u32[], token[]) send(%sum, %order), is_host_transfer=true, frontend_attributes={KIND}
  %recv = (f32[64,32]{1,0}, u32[], token[]) recv(%order), is_host_transfer=true, frontend_attributes={KIND}
  %sent = token[] send-done(%send), is_host_transfer=true
  %received = (f32[64,32]{1,0}, token[]) recv-done(%recv), is_host_transfer=true
  ROOT %result = f32[64,32]{1,0} get-tuple-element(%received), index=0
}
"""


@pytest.mark.parametrize(
    ("kind", "array", "sent"),
    [
        ("ALL_REDUCE", ARRAY, 1.5 * ARRAY),
        ("ALL_GATHER", 4 * ARRAY, 3 * ARRAY),  # the array sent is a chip's part
        ("REDUCE_SCATTER", ARRAY, 0.75 * ARRAY),
        ("ONE_TO_ONE", ARRAY, ARRAY),
    ],
)
def test_what_crosses_four_slices_is_counted_apart(kind, array, sent):
    text = CROSSING.replace("KIND", f'_xla_megascale_transfer_type="{kind}"')
    found = hlo.traffic(text, 4, 4)
    assert (found.collectives, found.sent_bytes) == ({"all-reduce": (1, ARRAY)}, 2 * ARRAY * 1 / 2)
    assert (found.across, found.dcn_bytes) == ({kind.lower().replace("_", "-"): (1, array)}, sent)
    assert found.hbm_bytes == pytest.approx(4 * ARRAY, rel=0.01)  # the sum's both ends, what is sent and what comes
    assert hlo.traffic(CROSSING, 4, 4).across == {}  # a transfer to the host is none to other slices


STARTED = """
ENTRY %main (p: f32[64,32]) -> f32[64,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %start = SHAPE KIND-start(%p), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %done = f32[64,32]{1,0} KIND-done(%start)
}
"""


@pytest.mark.parametrize(
    ("kind", "shape", "array", "result"),
    [
        ("all-reduce", "f32[64,32]{1,0}", ARRAY, ARRAY),
        ("all-gather", "(f32[64,32]{1,0}, f32[256,32]{1,0})", 4 * ARRAY, 4 * ARRAY),
        ("reduce-scatter", "((f32[64,32]{1,0}), f32[16,32]{1,0})", ARRAY, ARRAY / 4),
        ("collective-permute", "(f32[64,32]{1,0}, f32[64,32]{1,0})", ARRAY, ARRAY),
    ],
)
def test_a_collective_that_is_started_and_awaited_counts_once(kind, shape, array, result):
    found = hlo.traffic(STARTED.replace("KIND", kind).replace("SHAPE", shape), 4)
    assert (found.collectives, found.hbm_bytes) == ({kind: (1, array)}, ARRAY + result)


def test_only_what_leaves_the_chip_is_memory_traffic():
    shape = "(f32[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)})"
    assert hlo.size("f32[8,128]{1,0:T(8,128)}") == 4096
    assert (hlo.size(shape), hlo.size(shape, hbm_only=True)) == (4096 + 2048 + 4, 2048)

    def traffic_of(function, *shape: int) -> float:
        text = jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()
        return hlo.traffic(text, 1).hbm_bytes

    def summed(x):
        return jax.lax.scan(lambda carry, row: (carry + jnp.sin(row), None), jnp.zeros(4096), x)[0]

    assert traffic_of(lambda x: jnp.sin(x) * 2 + 1, 64, 32) == pytest.approx(2 * ARRAY, rel=0.1)
    # A row is read, and the sum is read and written, 16 times each; the array each time would be 16 times that.
    assert traffic_of(summed, 16, 4096) < 6 * 16 * 4096 * 4


def check(*flags: str) -> list[str]:
    return ["launch.compile_check", "--config=configs/pretrain_v05.py:nano", *flags]


@pytest.mark.parametrize("topology", ["v5e", "v5p:4x4", "v9:4x4"])
def test_slices_that_do_not_exist_are_bad_usage(topology):
    with pytest.raises(UsageError, match=topology):
        describe(topology)


@pytest.mark.skipif(bool(LIBTPU), reason="the TPU compiler is installed")
def test_without_the_compiler_its_package_is_named(ghost):
    assert "pip install libtpu==" in ghost.refused_here(*check("--topology=v5e:4x4"))


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_for_slices_or_refused_with_what_it_needs(ghost, tmp_path):
    """On two slices parameters are sharded inside each, and gradients are summed across."""
    compiler = {"PYTHONPATH": str(Path(LIBTPU.origin).parents[1])}
    shape = {f"model.{key}": value for key, value in SMALL.items()}
    split = set_all(shape | {"mesh.data": 1, "mesh.fsdp": -1})
    reports = {}
    for slices in (1, 2):
        ghost(*check("--topology=v5e:2x2", f"--slices={slices}", f"--out={tmp_path / 'report'}", *split), env=compiler)
        reports[slices] = json.loads((tmp_path / "report").read_text())
    one, two = reports[1], reports[2]
    assert (one["chips"], one["mesh"]) == (4, {"replica": 1, "data": 1, "fsdp": 4, "tensor": 1})
    assert (two["chips"], two["mesh"]) == (8, {"replica": 2, "data": 1, "fsdp": 4, "tensor": 1})
    # Parameters and both moments in float32, split over the four chips of a slice; tiles are padded.
    parameters = 512 * 128 + 4 * 128 * 128 + 4 * 128 + 3 * 128 * 128 + 3 * 128
    assert 1 <= one["arguments"] / (3 * 4 * parameters / 4) < 1.6
    assert two["arguments"] == pytest.approx(one["arguments"], rel=0.05)
    assert one["flops"] == pytest.approx(8 * 256 * (6 * parameters + 12 * 128 * 256), rel=0.05)
    assert {"all-gather", "reduce-scatter"} & set(one["collectives"])
    assert (one["across"], one["dcn_bytes"], set(two["across"])) == ({}, 0, {"all-reduce"})
    assert 4 * parameters / 4 < two["dcn_bytes"] < 4 * 4 * parameters / 4  # float32 gradients; some are not split
    assert two["seconds"]["network"] == pytest.approx(two["dcn_bytes"] / CHIPS["v5e"].dcn_bytes_per_s)
    large = set_all(shape | {"batch_size": 2**18, "micro_batch_size": 2**18})
    assert "exceeds available HBM" in ghost.refused(*check("--topology=v5e:2x2", *large), env=compiler)
    replica = ["--slices=2", "--config.mesh.replica=1", *split]
    assert "--config.mesh.replica=2" in ghost.refused(*check("--topology=v5e:2x2", *replica), env=compiler)


@needs_eight
def test_a_step_that_does_not_fit_is_refused_with_a_mesh_that_there_is(monkeypatch, capsys):
    devices, chip = jax.devices()[:4], dataclasses.replace(CHIPS["v5e"], hbm_bytes=1)
    monkeypatch.setattr(compile_check, "describe", lambda *_: (chip, devices))
    flags = set_all({f"model.{key}": value for key, value in SMALL.items()} | {"mesh.tensor": 2})
    assert compile_check.main([*check("--topology=v5e:2x2", *flags)[1:]]) == FAILED
    advised = dict(re.findall(r"--config\.mesh\.(\w+)=(\d+)", capsys.readouterr().err))
    make_mesh(tensor=2, devices=devices, **{axis: int(size) for axis, size in advised.items()})
    assert {chip.kind for chip in CHIPS.values()} <= PEAK_FLOPS.keys()


def test_a_step_that_trains_adapters_is_traced():
    config = config_lib.load(f"{ROOT}/configs/chat_v5.py:nano")
    for key, value in {"lora.rank": "4", "model.dtype": "float32", "model.layers": "1"}.items():
        config_lib.override(config, key, value)
    trace_step(config, make_mesh(devices=jax.devices()[:1]))
