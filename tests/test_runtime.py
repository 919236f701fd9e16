"""jax_setup.py: an installed libtpu is not loaded where there is no TPU; the type a machine trains in."""

import json
import os
import subprocess
import sys

import pytest

from ghost_jax.config import load as config
from ghost_jax.core import jax_setup
from ghost_jax.core.errors import UserError
from ghost_jax.runs import run_dir
from tests.conftest import ROOT, WAIT, tiny_base

# As the real package: importing it names its library, which prints errors when it is loaded without a TPU.
LIBTPU = """
import os
def get_library_path():
    return os.path.join(os.path.dirname(__file__), "libtpu.so")
os.environ.setdefault("TPU_LIBRARY_PATH", get_library_path())
"""
CODE = """
from jax._src import cloud_tpu_init
assert cloud_tpu_init.get_tpu_library_path() is not None, "JAX finds the library"
from ghost_jax.core import jax_setup
jax_setup.set_up()
assert cloud_tpu_init.get_tpu_library_path() is None, "and no longer"
import jax
print(jax.devices()[0].platform)
"""


def test_an_installed_tpu_library_is_not_loaded_without_a_tpu(tmp_path):
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").write_text(LIBTPU)
    (tmp_path / "libtpu" / "libtpu.so").write_bytes(b"")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "TPU_"))}
    environment |= {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["cpu"], "")


def test_a_command_that_trains_looks_for_no_tpu(ghost, with_libtpu, tmp_path):
    shown = ghost(*tiny_base(tmp_path / "base"), "--plan", env=with_libtpu)
    assert "libtpu is loaded" not in shown.stderr


def test_a_sweep_that_opens_a_run_looks_for_no_tpu(ghost, with_libtpu, tmp_path):
    opened = tmp_path / "peak_lr=0.02-seed2"
    opened.mkdir()
    (opened / "config.json").write_text(json.dumps({"seed": 7, "model": {"dtype": "float32"}}))
    command = ("ghost_jax.sweep", "--config=configs/sweeps/lr.py:nano", f"--runs={tmp_path}", "--dry_run")
    result = ghost(*command, env=with_libtpu, check=False)
    assert "holds a run of another config" in " ".join(result.stderr.split())
    assert "libtpu is loaded" not in result.stderr


DROPPED = """
from ghost_jax.core import jax_setup
jax_setup.set_up()
async def read(message):
    try:
        await Forever()
    except GeneratorExit:  # as Orbax's reads turn it into an error of their own when they are dropped
        raise RuntimeError(message)
class Forever:
    def __await__(self):
        yield
for message in ("Encountered error while reading array index: (0,)", "something else"):
    coroutine = read(message)
    coroutine.send(None)
    del coroutine
"""


def test_a_read_that_is_dropped_after_a_failed_one_says_nothing(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", DROPPED]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT).stderr
    assert "something else" in said
    assert "reading array" not in said.replace(DROPPED, "")


# ---- The type that a run computes in ----


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("avx2 avx512f amx_bf16", "bfloat16"), ("avx512_bf16 fma", "bfloat16"), ("avx2 avx512f amx_int8", "float32")],
)
def test_a_cpu_trains_in_bfloat16_where_it_has_the_instructions(tmp_path, flags, dtype):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n")
    assert jax_setup.fast_dtype(tmp_path / "cpuinfo") == dtype
    assert jax_setup.fast_dtype(tmp_path / "absent") == "float32"


@pytest.mark.parametrize("begun_in", ["float32", "bfloat16"])
def test_a_run_keeps_the_type_it_began_with(tmp_path, begun_in):
    def asked(dtype):
        with_dtype = config.load("configs/pretrain_v05.py:nano")
        config.override(with_dtype, "model.dtype", dtype)
        run_dir.settle(with_dtype, tmp_path)
        return with_dtype

    assert asked("auto").model.dtype == jax_setup.fast_dtype()
    run_dir.open_run(tmp_path, asked(begun_in))
    assert asked("auto").model.dtype == begun_in
    run_dir.open_run(tmp_path, asked("auto"))
    other = "float32" if begun_in == "bfloat16" else "bfloat16"
    with pytest.raises(UserError, match=r"model\.dtype"):
        run_dir.open_run(tmp_path, asked(other))


def test_a_broken_config_is_named_before_its_type_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"dty')
    with pytest.raises(UserError, match=r"config\.json is broken"):
        run_dir.settle(config.load("configs/pretrain_v05.py:nano"), tmp_path)
