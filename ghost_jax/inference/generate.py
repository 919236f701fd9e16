"""Text from a model, token by token: greedy or drawn, many prompts at once or one as a stream.

What a row becomes depends on its prompt, its key and the sampling alone, never on the rows beside it, the padding or
the mesh. A batch is as long as its longest row; programs are compiled for few lengths and numbers of prompts, whatever
is asked.
A stream reads its prompt a few tokens at a time and keeps what it has read, so that a conversation is read once.
"""

import functools
from collections.abc import Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.inference.sampling import GREEDY, Sampling, choose, penalised
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Cache, Transformer
from ghost_jax.parallel.mesh import BATCH, batch_sharding, batch_shards, replicated
from ghost_jax.parallel.sharding_rules import shardings

SHORTEST = 32  # tokens that a prompt is padded to at least; longer ones to a power of two or the context
# Tokens that a stream reads at once, of a prompt's body and of its tail: many, so that the parameters are fetched
# seldom, but few where little is left to read. The body needs no hidden states.
LONG_CHUNK, CHUNK, TAIL = 192, 64, 8
# Slots of a stream's first cache, which doubles when it is full: an unused slot costs a CPU what a used one does.
SLOTS = 256
NOTHING = -1  # in place of an id, where a row had ended


@flax.struct.dataclass
class _State:
    """Where the rows of a batch stand after some choices.

    Attributes:
      cache: of all tokens but the newest.
      newest: [B] int32, the last id chosen, NOTHING where the row had ended or ends with it.
      going: [B] bool, the rows that go on.
      seen: [B, V] bool, the tokens that stand in the prompt or were chosen.
      count: int32 [], how many ids were chosen.
    """

    cache: Cache
    newest: jax.Array
    going: jax.Array
    seen: jax.Array
    count: jax.Array


class Generator:
    """Generates with one model; its programs are compiled once for each padded length and number of prompts.

    Args:
      params: of the model; sharded over `mesh` by the rules, and copied there only if they are not there yet.
      batch_size: prompts computed at once, at most; rounded up to what the mesh divides.
      new_tokens: the most that are generated after a prompt. A row ends before at the context's end, so that a number
        above the context is that of the shortest prompt.
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
        self._new_tokens = min(new_tokens, config.context - 1)  # memory is taken for all, and no prompt leaves more
        self._model = Transformer(config, rows=batch_sharding(mesh))
        self._is_stop = np.isin(np.arange(config.padded_vocab), stop_ids)
        self._batch_size = batch_size + -batch_size % batch_shards(mesh)
        by_rule, rows, whole = shardings(params, mesh), batch_sharding(mesh), replicated(mesh)
        self._params = jax.device_put(params, by_rule)
        heads = NamedSharding(mesh, P(None, *BATCH, "tensor"))
        cache = Cache(heads, heads, rows, rows, whole)
        self._placed = _State(cache, rows, rows, rows, whole)
        self._all = jax.jit(self._run, in_shardings=(by_rule, rows, rows, rows, rows, whole), out_shardings=whole)
        self._empty = jax.jit(self._no_text, out_shardings=cache)
        self._grown = jax.jit(_grown, static_argnums=1, out_shardings=cache)
        reads = functools.partial(jax.jit, in_shardings=(by_rule, cache, whole, rows, whole), donate_argnums=1)
        self._read_body = reads(self._kept_of_chunk, out_shardings=cache)
        self._read_tail = reads(self._read_chunk, out_shardings=(rows, cache))
        self._first = jax.jit(
            self._choose_first,
            in_shardings=(by_rule, rows, cache, rows, rows, whole),
            out_shardings=self._placed,
            donate_argnums=2,
        )
        self._next = jax.jit(
            self._advance,
            in_shardings=(by_rule, self._placed, rows, whole),
            out_shardings=self._placed,
            donate_argnums=1,
        )
        self._forget()

    def __call__(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling = GREEDY,
        keys: jax.Array | None = None,
        *,
        shown: bool = True,
    ) -> list[np.ndarray]:
        """Returns the ids that follow each prompt, without the prompt and what ended it.

        Args:
          prompts: N rows of 1 to context - 1 ids.
          keys: PRNG keys [N], one a row; needed where something is drawn.
          shown: whether standard output tells how far it is.

        Raises UserError for a prompt of another length.
        """
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(self._padded_length(len(prompt)), []).append(row)
        keys = self._key_data(keys, sampling, len(prompts))
        texts: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        with Progress("generating", len(prompts), unit="prompts", shown=shown, brief=True) as progress:
            for length, rows in sorted(by_length.items()):
                size = self._padded_rows(len(rows))
                for start in range(0, len(rows), size):
                    batch = rows[start : start + size]
                    inputs = self._batch([prompts[row] for row in batch], keys[batch], length, size)
                    chosen = np.asarray(self._all(self._params, *inputs, sampling.scalars()))
                    for row, ids in zip(batch, chosen, strict=False):  # the last batch is filled up
                        texts[row] = ids[ids != NOTHING]
                    progress.advance(len(batch))
        return texts

    def stream(self, prompt: np.ndarray, sampling: Sampling = GREEDY, key: jax.Array | None = None) -> Iterator[int]:
        """Yields the ids that follow one prompt as they are chosen: those that a call with it and its key returns.

        What a prompt begins with is not read again where the stream before had it: of a conversation that goes on, the
        newest turn alone is. A stream that is left before its end may be followed by another, not gone on with.
        """
        self.room_after(len(prompt))
        keys = np.broadcast_to(self._key_data(None if key is None else key[None], sampling, 1), (self._rows, 2))
        scalars = sampling.scalars()
        hidden, cache = self._read_on(prompt)
        state = self._first(self._params, hidden, cache, self._seen([prompt] * self._rows, self._rows), keys, scalars)
        for chosen in range(1, self._new_tokens + 1):
            newest, going = (each[0] for each in jax.device_get((state.newest, state.going)))
            self._text, self._cache = prompt, state.cache
            if newest != NOTHING:
                yield int(newest)
            if not going or chosen == self._new_tokens:
                return
            self._forget()  # the cache is about to be written over
            prompt = np.append(prompt, newest)
            state = state.replace(cache=self._with_room(state.cache, len(prompt)))
            state = self._next(self._params, state, keys, scalars)

    def room_after(self, length: int) -> int:
        """Returns how many ids can follow a prompt of `length` at most. Raises UserError where none can."""
        context = self._config.context
        if not 0 < length < context:
            raise UserError(
                f"A prompt has {length:,} tokens; the model's context of {context:,} takes 1 to {context - 1:,}, so "
                "that one can follow. Shorten the prompt."
            )
        return min(self._new_tokens, context - length)

    def warm_up(self) -> None:
        """Compiles all that `stream` needs, so that nobody waits for it in the middle of an answer."""
        self._forget()
        *bodies, end = (np.zeros((self._rows, length), np.int32) for length in (LONG_CHUNK, CHUNK, TAIL))
        seen, cache, keys = self._seen([], self._rows), self._empty(), np.zeros((self._rows, 2), np.uint32)
        while True:
            for body in bodies:
                cache = self._read_body(self._params, cache, np.int32(0), body, np.int32(1))
            hidden, cache = self._read_tail(self._params, cache, np.int32(0), end, np.int32(1))
            state = self._first(self._params, hidden, cache, seen, keys, GREEDY.scalars())
            cache = self._next(self._params, state, keys, GREEDY.scalars()).cache
            slots = cache.filled.shape[1]
            if slots == self._most_slots:
                return
            cache = self._with_room(cache, slots + 1)

    # ---- What a stream keeps ----

    @property
    def _rows(self) -> int:
        """The rows of a stream: its one prompt, again on each device that has a part of the batch."""
        return batch_shards(self._mesh)

    def _forget(self) -> None:
        self._text, self._cache = np.zeros(0, np.int32), None

    def _read_on(self, prompt: np.ndarray) -> tuple[jax.Array, Cache]:
        """Returns the last hidden state [B, 1, D] of a prompt and its cache; reads what is not in the one kept."""
        shared = min(len(self._text), len(prompt) - 1)  # the last token's state is not kept
        differs = np.flatnonzero(self._text[:shared] != prompt[:shared])
        start = int(differs[0]) if len(differs) else shared
        cache = self._cache if start else self._empty()
        self._forget()
        while len(prompt) - start > 2 * TAIL:  # fewer are read faster as two tails
            left = len(prompt) - TAIL - start
            size = LONG_CHUNK if left > LONG_CHUNK - CHUNK else CHUNK
            piece = prompt[start : start + min(size, left)]
            cache = self._with_room(cache, start + size)
            cache = self._read_body(self._params, cache, *self._chunk(piece, start, size))
            start += len(piece)
        while start < len(prompt):
            piece = prompt[start : start + TAIL]
            cache = self._with_room(cache, start + TAIL)
            hidden, cache = self._read_tail(self._params, cache, *self._chunk(piece, start, TAIL))
            start += len(piece)
        return hidden, cache

    def _chunk(self, piece: np.ndarray, start: int, length: int) -> tuple[np.int32, np.ndarray, np.int32]:
        """Returns where a piece of a prompt starts, its ids filled up to [B, length], and how many are its own."""
        tokens = np.broadcast_to(np.pad(piece, (0, length - len(piece))), (self._rows, length))
        return np.int32(start), tokens, np.int32(len(piece))

    @property
    def _most_slots(self) -> int:
        return self._config.context + CHUNK  # the last chunk is filled up

    def _slots(self, tokens: int) -> int:
        """Returns of how many slots a stream's cache of so many tokens is."""
        slots = max(SLOTS, 1 << (tokens - 1).bit_length())
        return slots if slots < self._config.context else self._most_slots

    def _with_room(self, cache: Cache, tokens: int) -> Cache:
        if tokens <= cache.filled.shape[1]:
            return cache
        return self._grown(cache, self._slots(tokens))

    # ---- What is compiled ----

    def _run(
        self,
        params: dict,
        tokens: jax.Array,
        lengths: jax.Array,
        seen: jax.Array,
        keys: jax.Array,
        scalars: tuple,
    ) -> jax.Array:
        """Returns the ids [B, N] chosen after prompts [B, T], NOTHING where a row had ended."""

        def unfinished(carry: tuple) -> jax.Array:
            state, _ = carry
            return (state.count < self._new_tokens) & state.going.any()

        def choose_next(carry: tuple) -> tuple:
            state, ids = carry
            state = self._advance(params, state, keys, scalars)
            return state, ids.at[:, state.count - 1].set(state.newest)

        slots = tokens.shape[1] + self._new_tokens
        hidden, cache = self._model.apply({"params": params}, tokens, lengths, slots, method="prefill")
        last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
        state = self._chosen(params, last, cache, lengths > 0, seen, jnp.int32(0), keys, scalars)
        ids = jnp.full((len(tokens), self._new_tokens), NOTHING).at[:, 0].set(state.newest)
        return jax.lax.while_loop(unfinished, choose_next, (state, ids))[1]

    def _no_text(self) -> Cache:
        tokens, lengths = jnp.zeros((self._rows, 1), jnp.int32), jnp.zeros(self._rows, jnp.int32)

        def prefill(params: dict) -> tuple[jax.Array, Cache]:
            return self._model.apply({"params": params}, tokens, lengths, self._slots(1), method="prefill")

        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(prefill, self._params)[1])

    def _read_chunk(
        self, params: dict, cache: Cache, start: jax.Array, tokens: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Reads the first `count` of tokens [B, T] behind the first `start` of a cache, which keeps no others.

        Returns the last hidden state [B, 1, D] and the cache.
        """
        hidden, cache = self._model.apply({"params": params}, tokens, _held(cache, start), method="extend")
        return jax.lax.dynamic_slice_in_dim(hidden, count - 1, 1, axis=1), _held(cache, start + count)

    def _kept_of_chunk(
        self, params: dict, cache: Cache, start: jax.Array, tokens: jax.Array, count: jax.Array
    ) -> Cache:
        """Returns the cache of `_read_chunk` alone: the compiler leaves out what only the hidden state needs."""
        return self._read_chunk(params, cache, start, tokens, count)[1]

    def _choose_first(
        self, params: dict, hidden: jax.Array, cache: Cache, seen: jax.Array, keys: jax.Array, scalars: tuple
    ) -> _State:
        return self._chosen(params, hidden, cache, jnp.ones(len(hidden), bool), seen, jnp.int32(0), keys, scalars)

    def _advance(self, params: dict, state: _State, keys: jax.Array, scalars: tuple) -> _State:
        tokens = jnp.maximum(state.newest, 0)[:, None]  # of a row that has ended nothing is read
        hidden, cache = self._model.apply({"params": params}, tokens, state.cache, method="extend")
        return self._chosen(params, hidden, cache, state.going, state.seen, state.count, keys, scalars)

    def _chosen(
        self,
        params: dict,
        hidden: jax.Array,
        cache: Cache,
        going: jax.Array,
        seen: jax.Array,
        count: jax.Array,
        keys: jax.Array,
        scalars: tuple,
    ) -> _State:
        """Returns the state after one more choice, by the last hidden states [B, 1, D]."""
        *sampling, penalty = scalars
        logits = self._model.apply({"params": params}, hidden[:, 0], method="head")
        logits = penalised(logits, seen & ~self._is_stop, penalty)
        own = jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(keys), count)
        newest = choose(logits, own, *sampling)
        seen = seen.at[jnp.arange(len(seen)), newest].set(True)
        going &= ~jnp.asarray(self._is_stop)[newest]
        newest = jnp.where(going, newest, NOTHING)
        room = cache.length + 1 < self._config.context  # beside the newest token, which the cache does not hold yet
        state = _State(cache, newest, going & room, seen, count + 1)
        return jax.lax.with_sharding_constraint(state, self._placed)

    # ---- What goes in ----

    def _padded_length(self, length: int) -> int:
        self.room_after(length)
        return min(max(SHORTEST, 1 << (length - 1).bit_length()), self._config.context)

    def _padded_rows(self, count: int) -> int:
        """Returns the rows of a batch that `count` prompts are computed in: a power of two, since each is compiled."""
        rows = 1 << (count - 1).bit_length()
        return min(rows + -rows % batch_shards(self._mesh), self._batch_size)

    def _batch(self, prompts: Sequence[np.ndarray], keys: np.ndarray, length: int, rows: int) -> tuple:
        """Returns tokens [B, length], lengths [B], seen [B, V], raw keys [B, 2]; a row too many has length 0."""
        tokens = np.zeros((rows, length), np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        return tokens, lengths, self._seen(prompts, rows), np.pad(keys, ((0, rows - len(prompts)), (0, 0)))

    def _seen(self, prompts: Sequence[np.ndarray], rows: int) -> np.ndarray:
        seen = np.zeros((rows, self._config.padded_vocab), bool)
        for row, prompt in enumerate(prompts):
            seen[row, prompt] = True
        return seen

    def _key_data(self, keys: jax.Array | None, sampling: Sampling, rows: int) -> np.ndarray:
        if keys is None:
            if sampling.temperature > 0:
                raise ValueError("what is drawn needs a key for each row")
            keys = jnp.broadcast_to(jax.random.key(0), rows)  # greedy choices read none
        return np.asarray(jax.random.key_data(keys))


def _held(cache: Cache, tokens: jax.Array) -> Cache:
    """Returns the cache of a stream's first tokens alone; each lies in the slot of its position."""
    filled = jnp.broadcast_to(jnp.arange(cache.filled.shape[1]) < tokens, cache.filled.shape)
    return cache.replace(filled=filled, length=jnp.full_like(cache.length, tokens), used=jnp.int32(tokens))


def _grown(cache: Cache, slots: int) -> Cache:
    more = (0, slots - cache.filled.shape[1])
    keys, values = (jnp.pad(each, ((0, 0), (0, 0), (0, 0), more, (0, 0))) for each in (cache.keys, cache.values))
    return cache.replace(keys=keys, values=values, filled=jnp.pad(cache.filled, ((0, 0), more)))
