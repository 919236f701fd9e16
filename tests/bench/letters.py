"""Letter scoring against a plain loop: `python -m tests.bench.letters --workdir=runs/NAME --items=FILE`.

The peer is what one would write first: prompts in the order of the dataset, 32 a batch, each batch padded to its
longest, the same model in the same precision, logits at the last position alone. Both answer the same questions in
the same process, a part of the benchmark in turn, so that whatever else the machine does falls on both.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from evals.answering.letters import letter_answers, prompt_of
from evals.items.answers import orders_of
from evals.items.formats import read_items
from evals.items.items import Item, Order, permute
from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import command
from ghost_jax.core.paths import local_path
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.mcq_format import letter_ids
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import load_model
from ghost_jax.training.step import make_predict
from tests.bench.code import code_of

BATCH = 32
PARTS = 5


class PlainLoop:
    """Scores `(items, orders) -> log-probabilities [prompts, 4]`, a batch of prompts after the other."""

    def __init__(self, config: ModelConfig, params: dict, tokenizer: Tokenizer):
        self._model, self._params, self._tokenizer = Transformer(config), params, tokenizer
        self._ids = letter_ids(tokenizer)
        self._forward = jax.jit(self._scores)

    def _scores(self, params: dict, tokens: jax.Array, last: jax.Array) -> jax.Array:
        hidden = self._model.apply({"params": params}, tokens, method="hidden")
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return jax.nn.log_softmax(self._model.apply({"params": params}, hidden, method="head"))[:, self._ids]

    def __call__(self, items: Sequence[Item], orders: Sequence[Sequence[Order]]) -> np.ndarray:
        prompts = [
            prompt_of(self._tokenizer, permute(item, order))
            for item, asked in zip(items, orders, strict=True)
            for order in asked
        ]
        found = []
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            tokens = np.zeros((BATCH, max(map(len, batch))), np.int32)
            for row, prompt in enumerate(batch):
                tokens[row, : len(prompt)] = prompt
            last = np.array([len(prompt) - 1 for prompt in batch] + [0] * (BATCH - len(batch)))
            found.append(np.asarray(self._forward(self._params, tokens, last))[: len(batch)])
        return np.concatenate(found)


@command
def main(argv: Sequence[str]) -> int:
    """Measures how much faster the evaluator scores letters than a plain loop over the same model."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.letters", description=main.__doc__)
    parser.add_argument(
        "--workdir", required=True, type=local_path, metavar="DIR", help="a chat run of the size to measure"
    )
    parser.add_argument("--items", required=True, type=local_path, metavar="FILE", help="items with four options")
    parser.add_argument("--batch_size", type=int, default=16, help="rows a forward pass of ours (default: 16)")
    parser.add_argument("--limit", type=int, default=0, help="about so many questions (default: all)")
    parser.add_argument("--out", type=local_path, metavar="FILE", help="the record as JSON")
    flags = parser.parse_args(argv)

    jax_setup.set_up()
    mesh = make_mesh()
    config, params, _ = load_model(flags.workdir, mesh)
    tokenizer = tokenizer_lib.load(flags.workdir / "tokenizer.json")
    items = read_items(flags.items).items
    items = items[:: max(1, len(items) // (flags.limit or len(items)))]  # spread over the whole
    orders = orders_of(items, "cyclic")
    predict = functools.partial(make_predict(config, params, mesh), params)
    plain = PlainLoop(config, params, tokenizer)

    def ours(items: Sequence[Item], orders: Sequence[Sequence[Order]]) -> np.ndarray:
        answers, _ = letter_answers(
            predict, tokenizer, items, orders, context=config.context, batch_size=flags.batch_size
        )
        return np.concatenate(answers.log_probs)

    seconds, worst = {"ours": 0.0, "plain loop": 0.0}, 0.0
    parts = [slice(start, start + -(-len(items) // PARTS)) for start in range(0, len(items), -(-len(items) // PARTS))]
    for timed in (False, True):  # once to compile every shape, once to measure
        for part in parts:
            scores = {}
            for name, score in (("ours", ours), ("plain loop", plain)):
                start = time.perf_counter()
                scores[name] = score(items[part], orders[part])
                seconds[name] += (time.perf_counter() - start) * timed
            worst = max(worst, float(np.abs(scores["ours"] - scores["plain loop"]).max()))
    environment = dataclasses.asdict(run_dir.environment())
    record = {
        "machine": environment["machine"],
        "code": code_of(environment),
        "parameters": config.parameters(),
        "dtype": config.dtype,
        "questions": len(items),
        "orders": len(orders[0]),
        "seconds": seconds,
        "questions_per_s": {name: len(items) * len(orders[0]) / taken for name, taken in seconds.items()},
        "times": seconds["plain loop"] / seconds["ours"],
        "largest_difference": worst,
    }
    for name, speed in record["questions_per_s"].items():
        print(f"{name}: {speed:.1f} questions/s, {seconds[name]:.1f} s")
    print(f"{record['times']:.2f} times the plain loop; log-probabilities agree to {worst:.1e}")
    if flags.out:
        write_json(flags.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
