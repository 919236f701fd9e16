"""Text generation with a cache of keys and values: many prompts at once, or one as a stream.

The text of a row depends on its prompt, its key and the sampling alone, never on the rows beside it, the padding or the
mesh. A batch is as long as its longest row; prompts are padded to few lengths and row counts, since each is compiled.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.inference.sampling import GREEDY, Sampling, choose, columns
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Cache, Transformer
from ghost_jax.parallel.mesh import BATCH, batch_sharding, batch_shards, replicated
from ghost_jax.parallel.sharding_rules import shardings

SHORTEST = 32  # prompts are padded to at least this many tokens, longer ones to a power of two or the context
# Tokens that a stream reads at once: long chunks, so that the parameters are fetched seldom, and a short tail.
LONG_CHUNK, CHUNK, TAIL = 192, 64, 8
SLOTS = 256  # of a stream's first cache
WARM = 2048  # tokens of a text whose programs are compiled beforehand, at most
ENDED = -1  # in place of an id, where a row has ended


@flax.struct.dataclass
class State:
    """The rows of a batch after `count` choices."""

    newest: jax.Array  # [B] int32, the last id chosen, which may be a stop; ENDED where the row had ended before
    active: jax.Array  # [B] bool, the rows that continue
    seen: jax.Array  # [B, V] bool, the tokens of the prompt and the text
    count: jax.Array  # [B] int32, the choices of each row


class Generator:
    """Generates with one model; its programs are compiled once for each padded length and number of prompts.

    Args:
      params: of the model; sharded over `mesh` by the rules.
      batch_size: prompts computed at once, at most; rounded up to what the mesh divides.
      new_tokens: generated after a prompt, at most. The context ends a row as well.
      stop_ids: ids that end a row, at least one; they are not part of its text.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        mesh: Mesh,
        *,
        batch_size: int,
        new_tokens: int,
        stop_ids: Sequence[int],
    ):
        self._config, self._mesh = config, mesh
        self._new_tokens = min(new_tokens, config.context - 1)
        self._batch_size = batch_size + -batch_size % batch_shards(mesh)
        self._model = Transformer(config, rows=batch_sharding(mesh))
        self._is_stop = np.isin(np.arange(config.padded_vocab), stop_ids)
        by_rule, rows, replica = shardings(params, mesh), batch_sharding(mesh), replicated(mesh)
        heads = NamedSharding(mesh, P(None, *BATCH, "tensor"))
        self._params = jax.device_put(params, by_rule)
        self._cache_sharding = cache = Cache(heads, heads, rows, rows, replica)
        self._state_sharding = state = State(rows, rows, rows, rows)

        def compiled(function: Callable, *inputs: Any, outputs: Any, **options: Any) -> Callable:
            return jax.jit(function, in_shardings=(by_rule, *inputs), out_shardings=outputs, **options)

        self._generate = compiled(self._run, rows, rows, state, rows, rows, outputs=replica)
        self._first = compiled(self._choose, rows, rows, state, rows, rows, outputs=state)
        self._next = compiled(self._advance, cache, state, rows, rows, outputs=(cache, state), donate_argnums=1)
        self._read = compiled(self._extend, cache, rows, replica, replica, outputs=(rows, cache), donate_argnums=1)
        self._forget()

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling = GREEDY,
        keys: jax.Array | None = None,
        *,
        shown: bool = True,
    ) -> list[np.ndarray]:
        """Returns the ids that follow each prompt, without the prompt and the stop that ended it.

        Args:
          prompts: N rows of 1 to context - 1 ids.
          keys: PRNG keys [N], one a row; by default those of seed 0.
          shown: whether to print progress.

        Raises UserError for a prompt of another length.
        """
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            self.max_answer(len(prompt))
            length = min(max(SHORTEST, power_of_two(len(prompt))), self._config.context)
            by_length.setdefault(length, []).append(row)
        keys = jax.random.split(jax.random.key(0), len(prompts)) if keys is None else keys
        key_data = np.asarray(jax.random.key_data(keys))
        texts: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        with Progress("generating", len(prompts), unit="prompts", shown=shown, brief=True) as progress:
            for length, rows in sorted(by_length.items()):
                size = power_of_two(len(rows))
                size = min(size + -size % batch_shards(self._mesh), self._batch_size)
                for start in range(0, len(rows), size):
                    batch = rows[start : start + size]
                    inputs = self._inputs([prompts[row] for row in batch], key_data[batch], length, size)
                    chosen = np.asarray(self._generate(self._params, *inputs, columns([sampling] * size)))
                    for row, ids in zip(batch, chosen, strict=False):  # the last batch is filled up
                        texts[row] = ids[(ids != ENDED) & ~self._is_stop[ids]]
                    progress.advance(len(batch))
        return texts

    def stream(self, prompt: np.ndarray, sampling: Sampling = GREEDY, key: jax.Array | None = None) -> Iterator[int]:
        """Yields the ids that follow one prompt as they are chosen: those that a call with it and its key returns.

        Only what the last stream has not read is read, so that a conversation is read once. A stream may be left before
        its end; the next call replaces it. The mesh must not split the batch.
        """
        self.max_answer(len(prompt))
        key_data = np.asarray(jax.random.key_data(jax.random.key(0) if key is None else key))[None]
        how = columns([sampling])
        hidden, cache = _finished(self._reading(prompt))
        state = self._first(self._params, hidden, cache.length, self._start([prompt], 1), key_data, how)
        while True:
            newest, active = (each[0] for each in jax.device_get((state.newest, state.active)))
            self._cache, self._text = cache, prompt
            if not self._is_stop[newest]:
                yield int(newest)
            if not active:
                return
            self._forget()  # the next step overwrites the cache
            prompt = np.append(prompt, newest)
            cache = self._with_slots(cache, len(prompt))
            cache, state = self._next(self._params, cache, state, key_data, how)

    def max_answer(self, length: int) -> int:
        """Returns how many ids can follow a prompt of `length`. Raises UserError where none can."""
        context = self._config.context
        if not 0 < length < context:
            raise UserError(
                f"A prompt has {length:,} tokens; the model's context of {context:,} takes 1 to {context - 1:,}. "
                "Shorten the prompt."
            )
        return min(self._new_tokens, context - length)

    def cached(self, prompt: np.ndarray) -> int:
        """Returns how many of a prompt's first tokens the last stream has read; the last token is always read."""
        shared = min(len(self._text), len(prompt) - 1)
        same = self._text[:shared] == prompt[:shared]
        return shared if same.all() else int(same.argmin())

    def warm_up(self) -> None:
        """Compiles the programs that `stream` needs for texts of up to `WARM` tokens."""
        self._forget()
        state, key_data, how = self._start([], 1), np.zeros((1, 2), np.uint32), columns([GREEDY])
        cache = Cache.empty(self._config, 1)
        while (slots := cache.filled.shape[1]) <= min(self._config.context, WARM):
            cache = self._with_slots(cache, slots + 1)
            for size in (LONG_CHUNK, CHUNK, TAIL):
                tokens = np.zeros((1, size), np.int32)
                hidden, cache = self._read(self._params, cache, tokens, np.int32(0), np.int32(1))
            chosen = self._first(self._params, hidden, cache.length, state, key_data, how)
            cache, _ = self._next(self._params, cache, chosen, key_data, how)

    # ---- The cache of a stream ----

    def _forget(self) -> None:
        self._text, self._cache = np.zeros(0, np.int32), None

    def _reading(self, prompt: np.ndarray) -> Iterator[None]:
        """Reads a prompt, a chunk at each `next`; returns its last hidden state [1, 1, D] and its cache."""
        start = self.cached(prompt)
        cache = self._cache if start else Cache.empty(self._config, 1)
        self._forget()
        while start < len(prompt):
            left, size = len(prompt) - start, TAIL
            if left > 2 * TAIL:  # fewer are read faster as two tails
                left -= TAIL
                size = LONG_CHUNK if left > LONG_CHUNK - CHUNK else CHUNK
            count = min(left, size)
            tokens = np.zeros((1, size), np.int32)
            tokens[0, :count] = prompt[start : start + count]
            cache = self._with_slots(cache, start + size)
            hidden, cache = self._read(self._params, cache, tokens, np.int32(start), np.int32(count))
            start += count
            yield
        return hidden, cache

    def _with_slots(self, cache: Cache, tokens: int) -> Cache:
        """Returns the cache with slots for so many tokens. It is doubled: an unused slot costs a CPU as a used one."""
        slots = max(SLOTS, power_of_two(tokens))
        slots = slots if slots < self._config.context else self._config.context + CHUNK  # the last chunk is padded
        more = (0, slots - cache.filled.shape[1])
        if more[1] <= 0:
            return cache
        keys, values = (jnp.pad(each, ((0, 0), (0, 0), (0, 0), more, (0, 0))) for each in (cache.keys, cache.values))
        cache = cache.replace(keys=keys, values=values, filled=jnp.pad(cache.filled, ((0, 0), more)))
        return jax.device_put(cache, self._cache_sharding)

    # ---- Compiled functions ----

    def _run(
        self, params: dict, tokens: jax.Array, lengths: jax.Array, state: State, keys: jax.Array, how: tuple
    ) -> jax.Array:
        """Returns the ids [B, N] chosen after prompts [B, T], ENDED after a row's end."""

        def step(carry: tuple) -> tuple:
            cache, state, ids, count = carry
            cache, state = self._advance(params, cache, state, keys, how)
            return cache, state, ids.at[:, count].set(state.newest), count + 1

        slots = tokens.shape[1] + self._new_tokens
        hidden, cache = self._model.apply({"params": params}, tokens, lengths, slots, method="prefill")
        last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
        state = self._choose(params, last, lengths, state, keys, how)
        ids = jnp.full((len(tokens), self._new_tokens), ENDED).at[:, 0].set(state.newest)
        return jax.lax.while_loop(lambda carry: carry[1].active.any(), step, (cache, state, ids, 1))[2]

    def _extend(
        self, params: dict, cache: Cache, tokens: jax.Array, start: jax.Array, count: jax.Array
    ) -> tuple[jax.Array | None, Cache]:
        """Reads the first `count` of tokens [1, T] after the first `start` of a cache; what lies behind is dropped.

        Returns the last hidden state [1, 1, D] of a tail and the cache. No other chunk's is used, and without it the
        compiler leaves out the end of the last layer.
        """

        def first(cache: Cache, tokens: jax.Array) -> Cache:
            filled = jnp.broadcast_to(jnp.arange(cache.filled.shape[1]) < tokens, cache.filled.shape)
            return cache.replace(filled=filled, length=jnp.full_like(cache.length, tokens), used=jnp.int32(tokens))

        hidden, cache = self._model.apply({"params": params}, tokens, first(cache, start), method="extend")
        last = jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1, axis=1)
        return last if tokens.shape[1] == TAIL else None, first(cache, start + count)

    def _advance(self, params: dict, cache: Cache, state: State, keys: jax.Array, how: tuple) -> tuple[Cache, State]:
        """Reads the newest tokens and chooses the next ones."""
        tokens = jnp.maximum(state.newest, 0)[:, None]
        hidden, cache = self._model.apply({"params": params}, tokens, cache, method="extend")
        state = self._choose(params, hidden, cache.length, state, keys, how)
        return jax.lax.with_sharding_constraint((cache, state), (self._cache_sharding, self._state_sharding))

    def _choose(
        self, params: dict, hidden: jax.Array, length: jax.Array, state: State, keys: jax.Array, how: tuple
    ) -> State:
        """Returns the state after one more choice, by the last hidden states [B, 1, D] of rows of `length` [B]."""
        *sampling, penalty = how
        logits = self._model.apply({"params": params}, hidden[:, 0], method="head")
        penalized = jnp.where(logits > 0, logits / penalty[:, None], logits * penalty[:, None])
        logits = jnp.where(state.seen & ~self._is_stop, penalized, logits)
        own = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys), state.count)
        newest = choose(logits, own, *sampling)
        seen = state.seen.at[jnp.arange(len(newest)), newest].set(True)
        active = state.active & ~jnp.asarray(self._is_stop)[newest]
        newest = jnp.where(state.active, newest, ENDED)
        more = (length + 1 < self._config.context) & (state.count + 1 < self._new_tokens)
        return State(newest, active & more, seen, state.count + 1)

    # ---- Inputs ----

    def _inputs(self, prompts: Sequence[np.ndarray], key_data: np.ndarray, length: int, rows: int) -> tuple:
        """Returns tokens [B, length], lengths [B], the first state and raw keys [B, 2] of a batch, filled up."""
        tokens = np.zeros((rows, length), np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        return tokens, lengths, self._start(prompts, rows), np.pad(key_data, ((0, rows - len(prompts)), (0, 0)))

    def _start(self, prompts: Sequence[np.ndarray], rows: int) -> State:
        """Returns the state before the first choice; rows without a prompt are not active."""
        seen = np.zeros((rows, self._config.padded_vocab), bool)
        for row, prompt in enumerate(prompts):
            seen[row, prompt] = True
        return State(np.zeros(rows, np.int32), np.arange(rows) < len(prompts), seen, np.zeros(rows, np.int32))


def _finished(reading: Iterator[None]) -> tuple[jax.Array, Cache]:
    """Returns what a reading returns at its end."""
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value


def power_of_two(count: int) -> int:
    """Returns the lowest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
