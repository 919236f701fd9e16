"""Our sides of the comparisons: the product's own functions, put together as its commands put them together."""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from evals.answering.letters import letter_answers
from evals.items.answers import orders_of
from ghost_jax.core import jax_setup
from ghost_jax.data import mixture
from ghost_jax.data.prepare import prepare
from ghost_jax.inference.generate import Generator
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.distributed import to_global
from ghost_jax.parallel.mesh import batch_sharding, make_mesh
from ghost_jax.runs.metrics import memory_bytes
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.training.loading import load_model
from ghost_jax.training.optimizer import adamw
from ghost_jax.training.step import abstract_state, from_scratch, make_predict, make_train_step
from tests.bench import ragged, subject
from tests.bench.work import FLOAT32, OPTIMIZER, PRODUCTS, RATE, SEED, Files, Work


class OnJax:
    """A side that computes with JAX, prepared as our commands prepare a process.

    Args:
      dtype: the precision, a value of `model.dtype`.
    """

    def __init__(self, work: dict, folder: str, dtype: str):
        jax_setup.set_up()
        self.work, self.files, self.dtype = Work(**work), Files(Path(folder)), dtype

    def warm_up(self) -> list[float]:
        self.turn()
        return []

    def peak_bytes(self) -> int:
        return memory_bytes(jax.devices())

    def load_chat(self, mesh: Mesh) -> tuple[ModelConfig, dict]:
        """Returns the chat model's shape in the side's precision, and its parameters."""
        config, params, _ = load_model(self.files.chat, mesh)
        return dataclasses.replace(config, dtype=self.dtype), params


class Training(OnJax):
    """Updates of one model, batch by batch."""

    def begin(self, model: ModelConfig, micro_batch_size: int) -> None:
        """Makes the state of an untrained model, and its step."""
        self._mesh, optimizer = make_mesh(), adamw(**OPTIMIZER)
        abstract = abstract_state(model, optimizer)
        self._state = from_scratch(SEED, model, optimizer, abstract, self._mesh)
        self._step = make_train_step(Transformer(model), optimizer, abstract, self._mesh, micro_batch_size)

    def update(self, batch: dict) -> jax.Array:
        """Starts one update; returns its loss [], which may not be there yet."""
        placed = to_global(batch, batch_sharding(self._mesh))
        self._state, metrics = self._step(self._state, placed, RATE)
        return metrics["loss"]


class Pretrain(Training):
    """Updates on rows of random tokens. Unit: tokens. Its figure is the loss of the first update."""

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        self.begin(subject.base_model(self.work, dtype), self.work.batch_size)
        tokens = np.stack(ragged.read(self.files.rows, "tokens"))
        weights = np.ones(tokens[:, 1:].shape, np.float32)
        self._batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    def warm_up(self) -> list[float]:
        return [float(self.update(self._batch))]

    def turn(self) -> float:
        for _ in range(self.work.steps):
            loss = self.update(self._batch)
        jax.block_until_ready(loss)
        return self.work.steps * self._batch["tokens"].size


class Sft(Training):
    """Updates on packed rows of the chat recipe's real mixture. Unit: places that hold a conversation's token."""

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        config = subject.chat_config(self.work, dtype)
        prepared = prepare(config, None)
        self.begin(subject.chat_model(config, prepared), config.micro_batch_size)
        self._batches = mixture.read_from(mixture.train_batches(prepared.mix), 0)

    def turn(self) -> float:
        places = 0
        for _ in range(self.work.steps):
            batch = next(self._batches)
            places += np.count_nonzero(batch["segments"])
            loss = self.update(batch)
        jax.block_until_ready(loss)
        return float(places)


class Loader(OnJax):
    """Batches of the chat recipe's packed mixture, made and not trained on. Unit: places that hold a token."""

    def __init__(self, work: dict, folder: str):
        super().__init__(work, folder, FLOAT32)  # nothing is computed
        config = subject.chat_config(self.work)
        self._batches = mixture.read_from(mixture.train_batches(prepare(config, None).mix), 0)

    def turn(self) -> float:
        batches = itertools.islice(self._batches, self.work.batches)
        return float(sum(np.count_nonzero(batch["segments"]) for batch in batches))


class Letters(OnJax):
    """The evaluator's letters for a part of the questions in each of their orders. Unit: prompts.

    Its figures are the log-probabilities of the letters of the first part.
    """

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        mesh = make_mesh()
        config, params = self.load_chat(mesh)
        self._score = functools.partial(
            letter_answers,
            functools.partial(make_predict(config, params, mesh), params),
            tokenizer_lib.load(self.files.chat / "tokenizer.json"),
            context=config.context,
            batch_size=16,
        )
        self._parts = subject.parts_of(Path(self.work.items), self.work)
        self._turns = itertools.cycle(self._parts)

    def warm_up(self) -> list[float]:
        first, *_ = [self._scores(part) for part in self._parts]  # each may have a shape of its own
        return np.concatenate(first).ravel().tolist()

    def turn(self) -> float:
        return float(sum(map(len, self._scores(next(self._turns)))))

    def _scores(self, items: list) -> list[np.ndarray]:
        return self._score(items, orders_of(items, "cyclic"))[0].log_probs


class Decoding(OnJax):
    """One prompt continued greedily. Unit: new tokens.

    Its figures are their ids; none in bfloat16, whose rounding changes which of two close logits is the largest.

    Args:
      streamed: whether each token is handed out as it is chosen, as in a chat, or the text when it is whole.
    """

    def __init__(self, work: dict, folder: str, dtype: str, streamed: bool):
        super().__init__(work, folder, dtype)
        mesh = make_mesh(devices=jax.devices()[:1])  # as chat does
        config, params = self.load_chat(mesh)
        nothing = [config.padded_vocab]  # no id ends the text: every turn is of the same length
        size = {"batch_size": 1, "new_tokens": self.work.new_tokens, "stop_ids": nothing}
        self._generator = Generator(config, params, mesh, **size)
        self._prompt = ragged.read(self.files.prompts, "continued")[0]
        self._streamed = streamed

    def warm_up(self) -> list[float]:
        if self._streamed:
            self._generator.warm_up()
        ids = [float(each) for each in self._text()]
        return ids if self.dtype == FLOAT32 else []

    def turn(self) -> float:
        self._prompt = np.roll(self._prompt, 1)  # a stream keeps what it read of the last prompt
        return float(len(self._text()))

    def _text(self) -> list[int]:
        if self._streamed:
            return list(self._generator.stream(self._prompt))
        return self._generator([self._prompt], shown=False)[0].tolist()


class Product(OnJax):
    """The rate at which XLA multiplies large matrices. Unit: FLOP."""

    def __init__(self, work: dict, folder: str, dtype: str):
        super().__init__(work, folder, dtype)
        self._x = jnp.ones((self.work.product, self.work.product), dtype)
        self._multiply = jax.jit(lambda x: x @ x)

    def turn(self) -> float:
        for _ in range(PRODUCTS):
            self._multiply(self._x).block_until_ready()
        return 2.0 * self.work.product**3 * PRODUCTS
