"""A step of adapters beside one of all parameters, at SmolLM2-135M's shape: `python -m tests.bench.adapters`."""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from ghost_jax.core import jax_setup
from ghost_jax.core.errors import command
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.lora import Lora
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.training.optimizer import adamw
from ghost_jax.training.step import abstract_params, abstract_state, make_train_step, new_state

SHAPE = ModelConfig(
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    mlp_dim=1536,
    vocab_size=49_152,
    context=2048,
    attention_bias=False,
    remat=True,
    scan=True,
)
ROWS, LENGTH, TURNS = 2, 512, 5


def measure(rank: int) -> dict:
    """Returns tokens a second, the peak memory of this process and the parameters trained; rank 0 trains all."""
    jax_setup.set_up()
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = adamw(0.9, 0.95, 0.1, 1.0)
    lora = Lora(rank, 16.0, "kernel", SHAPE.vocab_size) if rank else None
    key = jax.random.key(0)
    params = jax.jit(lambda: transformer.init(SHAPE, key))()
    frozen = (lora.merge, abstract_params(SHAPE)) if lora else None
    shapes = abstract_state(SHAPE, optimizer, lora)
    step = make_train_step(Transformer(SHAPE), optimizer, shapes, mesh, ROWS, frozen=frozen)
    rest = [params] if lora else []
    state = new_state(lora.init(params, SHAPE, key) if lora else params, optimizer, key)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    del params
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((ROWS, LENGTH), np.float32)}
    seconds = []
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        state, metrics = step(state, batch, 1e-4, *rest)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = ROWS * LENGTH / float(np.median(seconds[1:]))
    return {"rank": rank, "trained": trained, "tokens_per_s": round(rate, 1), "peak_GiB": round(peak, 2)}


@command
def main(argv: Sequence[str]) -> int:
    """Measures a step of all parameters and one of adapters of rank 16, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.adapters", description=main.__doc__)
    parser.add_argument("--rank", type=int, help="measure this rank alone, in this process; 0 trains all parameters")
    flags = parser.parse_args(argv)
    if flags.rank is not None:
        print(json.dumps(measure(flags.rank)), flush=True)
        return 0
    for rank in (0, 16):
        subprocess.run([sys.executable, "-m", "tests.bench.adapters", f"--rank={rank}"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
