"""launch/compile_check.py: what a compiled step needs and moves, from real compilations."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.core.errors import UsageError
from ghost_jax.parallel.mesh import make_mesh
from launch import hlo
from launch.chips import CHIPS
from launch.compile_check import describe, matrix_flops
from tests.conftest import set_all

needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")
LIBTPU = importlib.util.find_spec("libtpu")
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="the TPU compiler is not installed: pip install libtpu==0.0.42.1")
SMALL = {"layers": 1, "width": 128, "heads": 2, "mlp_dim": 128, "vocab_size": 512}
WHOLE = 64 * 32 * 4  # bytes of the array that the collectives below move


def compiled_on_eight(function, *specs: P) -> str:
    """The program of a function of arrays [64, 32] that lie as the specs say, the last one being the result's."""
    mesh = make_mesh(2, 4, 1)
    places = [NamedSharding(mesh, spec) for spec in specs]
    arrays = [jax.ShapeDtypeStruct((64, 32), jnp.float32)] * (len(specs) - 1)
    jitted = jax.jit(function, in_shardings=tuple(places[:-1]), out_shardings=places[-1])
    return jitted.lower(*arrays).compile().as_text()


# ---- What moves between chips ----


@needs_eight
def test_a_gather_is_counted_with_the_whole_array_and_what_each_chip_sends_of_it():
    moved = hlo.traffic(compiled_on_eight(lambda x: x * 2, P("fsdp"), P()), 8)
    assert moved.collectives == {"all-gather": (1, WHOLE)}
    assert moved.sent_bytes == WHOLE * 3 / 4


@needs_eight
def test_a_sum_over_chips_is_sent_twice():
    moved = hlo.traffic(compiled_on_eight(lambda x: x.sum(0), P("data"), P()), 8)
    assert moved.collectives == {"all-reduce": (1, 32 * 4)}
    assert moved.sent_bytes == 2 * 32 * 4 * 1 / 2


@needs_eight
def test_a_collective_in_a_loop_is_counted_as_often_as_it_happens():
    def looped(x):
        def once(carry, _):
            # The sum differs each time, so that it cannot be moved out of the loop.
            return jnp.sin(carry) + jnp.sin(carry).sum(0), None

        return jax.lax.scan(once, x, None, length=7)[0]

    count, size = hlo.traffic(compiled_on_eight(looped, P("fsdp"), P("fsdp")), 8).collectives["all-reduce"]
    assert (count, size) == (7, 7 * 32 * 4)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true", 2),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=4], device_ids=([2,8]T(1,0)) {'a','c'}, dimensions={1}", 8),
        ("replica_groups={}", 16),
    ],
)
def test_groups_are_read_in_each_of_their_spellings(written, size):
    assert hlo._group_size(written, 16) == size


# ---- What moves to and from memory ----


def test_what_stays_on_the_chip_is_no_memory_traffic():
    assert hlo.size("f32[8,128]{1,0:T(8,128)}") == 4096
    assert hlo.size("(f32[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)})") == 4096 + 2048 + 4
    assert hlo.size("(f32[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)})", hbm_only=True) == 2048


def test_a_fused_elementwise_function_reads_its_argument_and_writes_its_result_once():
    text = jax.jit(lambda x: jnp.sin(x) * 2 + 1).lower(jax.ShapeDtypeStruct((64, 32), jnp.float32)).compile().as_text()
    assert hlo.traffic(text, 1).hbm_bytes == pytest.approx(2 * WHOLE, rel=0.1)


def test_a_loop_that_takes_one_row_at_a_time_reads_the_array_once():
    def summed(x):
        return jax.lax.scan(lambda carry, row: (carry + jnp.sin(row), None), jnp.zeros(4096), x)[0]

    text = jax.jit(summed).lower(jax.ShapeDtypeStruct((16, 4096), jnp.float32)).compile().as_text()
    # A row is read, and the sum is read and written, 16 times each; the whole array each time would be 16 times that.
    assert hlo.traffic(text, 1).hbm_bytes < 6 * 16 * 4096 * 4


# ---- What is computed ----


def test_matrix_products_are_counted_as_often_as_they_happen():
    def three_products(x, y):
        once = x @ y
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ y), None), once, None, length=2)[0]

    arguments = (np.zeros((8, 16), np.float32), np.zeros((16, 16), np.float32))
    assert matrix_flops(jax.make_jaxpr(jax.jit(three_products))(*arguments).jaxpr) == 3 * 2 * 8 * 16 * 16


# ---- The command ----


@pytest.fixture
def with_compiler() -> dict[str, str]:
    """The environment in which a command finds the compiler, wherever it is installed."""
    return {"PYTHONPATH": str(Path(LIBTPU.origin).parents[1])}


def check(*flags: str) -> list[str]:
    return ["launch.compile_check", "--config=configs/pretrain_v05.py:nano", *flags]


@pytest.mark.parametrize("topology", ["v5e", "v5e:4x4x4", "v5p:4x4", "v9:4x4", "v5e:0x4", "4x4"])
def test_a_slice_that_there_is_not_is_bad_usage(topology):
    with pytest.raises(UsageError, match="is no slice"):
        describe(topology)


@needs_libtpu
def test_an_axis_of_the_mesh_may_be_a_part_of_an_axis_of_the_torus():
    _, devices = describe("v5p:4x4x4")
    assert make_mesh(tensor=2, devices=devices).shape == {"data": 32, "fsdp": 1, "tensor": 2}


@pytest.mark.skipif(bool(LIBTPU), reason="the TPU compiler is installed")
def test_without_the_compiler_it_says_what_to_install(ghost):
    assert "pip install libtpu==" in ghost.refused(*check("--topology=v5e:4x4"))


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_for_a_slice_that_is_not_there(ghost, with_compiler, tmp_path):
    out = tmp_path / "report.json"
    shape = set_all({f"model.{key}": value for key, value in SMALL.items()} | {"mesh.data": 1, "mesh.fsdp": -1})
    result = ghost(*check("--topology=v5e:2x2", f"--out={out}", *shape), env=with_compiler)
    assert "memory a chip" in result.stdout
    report = json.loads(out.read_text())
    assert (report["chips"], report["mesh"]) == (4, {"data": 1, "fsdp": 4, "tensor": 1})
    assert report["fits"]
    assert report["memory_limit"] == CHIPS["v5e"].hbm_bytes
    # Parameters and both moments in float32, split over four chips; tiles are padded, and little stands beside them.
    parameters = 512 * 128 + 4 * 128 * 128 + 4 * 128 + 3 * 128 * 128 + 3 * 128
    assert 1 <= report["arguments"] / (3 * 4 * parameters / 4) < 1.6
    assert report["flops"] == pytest.approx(8 * 256 * (6 * parameters + 12 * 128 * 256), rel=0.05)
    assert {"all-gather", "reduce-scatter"} & set(report["collectives"])
    assert report["tokens_per_s"] == pytest.approx(report["tokens"] / max(report["seconds"].values()))


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_with_what_it_needs(ghost, with_compiler):
    shape = set_all({f"model.{key}": value for key, value in SMALL.items()})
    batch = set_all({"batch_size": 2**18, "micro_batch_size": 2**18})
    said = ghost.refused(*check("--topology=v5e:2x2", *shape, *batch), env=with_compiler)
    assert "does not fit a chip of v5e:2x2" in said
    assert "exceeds available HBM" in said
