"""Generation for many clients: a text joins and leaves the batch at any step ("Orca", Yu et al. 2022).

A prompt is read by itself, in chunks, and its keys and values are then copied to a free row of the batch. All rows
write to the same slot of the cache, so a row has holes; where the slots run out, the rows are moved together. The ids
of a text are those that `Generator.stream` yields for its prompt, sampling and key, whatever the other rows are.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ghost_jax.inference.generate import CHUNK, LONG_CHUNK, SHORTEST, SLOTS, Generator, State, power_of_two
from ghost_jax.inference.sampling import GREEDY, Sampling, columns
from ghost_jax.model.transformer import Cache

TOP = 5  # most probable tokens that `Engine.score` returns for each position
SCORED = 128  # positions whose logits are in memory at once


@dataclasses.dataclass(eq=False)
class Text:
    """A text that is generated."""

    prompt: np.ndarray  # [T] int32, 1 to context - 1 ids
    sampling: Sampling
    key_data: np.ndarray  # [2] uint32, of its PRNG key
    most: int  # ids that may follow, at least 1
    ids: list[int] = dataclasses.field(default_factory=list)  # those chosen so far, without a stop
    ended: str | None = None  # None, "stop" after a stop id, or "length"
    stop: int | None = None  # the id that ended it


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """The log-probabilities of a sequence of T ids: [T - 1] of each but the first, and the top [T, TOP] after each."""

    log_probs: np.ndarray
    top_ids: np.ndarray
    top_log_probs: np.ndarray


class Engine(Generator):
    """Generates up to `batch_size` texts at once, on one device. Not thread-safe: one thread calls it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._place = jax.jit(_place, donate_argnums=(0, 1))
        self._compact = jax.jit(_compact, donate_argnums=0)
        self._score = jax.jit(self._scores)
        self.clear()

    def clear(self) -> None:
        """Drops every text and the cache."""
        self._forget()
        self._reset()

    def cached(self, prompt: np.ndarray) -> int:
        """Returns how many first tokens of a prompt need not be read again; few are not worth the last one's cache."""
        shared = super().cached(prompt)
        return shared if shared >= CHUNK else 0

    def _reset(self) -> None:
        self._texts: list[Text | None] = [None] * self._batch_size
        self._key_data = np.zeros((self._batch_size, 2), np.uint32)
        self._batch = self._with_slots(Cache.empty(self._config, self._batch_size), SLOTS)
        self._state = jax.device_put(self._start([], self._batch_size), self._state_sharding)
        self._used = 0  # slots of the batch's cache

    def warm_up(self) -> None:
        """Compiles the programs that most texts need."""
        prompt = np.zeros(min(LONG_CHUNK + CHUNK, self._config.context // 2), np.int32)
        text = Text(prompt, GREEDY, np.zeros(2, np.uint32), 2)
        for _ in self.admit(text):
            pass
        if self.texts:
            self.step()
        self.score(prompt[:SHORTEST])
        self.clear()

    @property
    def texts(self) -> list[Text]:
        """The texts in the batch."""
        return [text for text in self._texts if text]

    @property
    def is_full(self) -> bool:
        """Whether no row is free."""
        return None not in self._texts

    def admit(self, text: Text) -> Iterator[None]:
        """Reads a prompt, a chunk at each `next`, and puts the text into a free row with its first id chosen.

        One prompt is read at a time.
        """
        if not self.texts:  # a long text has left a long cache, whose every slot costs a CPU as a used one
            self._reset()
        hidden, cache = yield from self._reading(text.prompt)
        how = text.key_data[None], columns([text.sampling])
        chosen = self._first(self._params, hidden, cache.length, self._start([text.prompt], 1), *how)
        self._cache, self._text = cache, text.prompt  # the next prompt may begin alike
        self._add(text, int(chosen.newest[0]), bool(chosen.active[0]))
        if text.ended:
            return
        row = self._texts.index(None)
        self._texts[row], self._key_data[row] = text, text.key_data
        self._batch = self._with_slots(self._batch, len(text.prompt) + 1)
        self._batch, self._state = self._place(self._batch, self._state, cache, chosen, np.int32(row))
        self._used = max(self._used, len(text.prompt))

    def step(self) -> None:
        """Chooses the next id of every text in the batch; those that end leave it."""
        if self._used == self._batch.filled.shape[1]:  # the cache grows while it is short of the context
            self._batch = self._compact(self._batch)
            self._used = max(len(text.prompt) + len(text.ids) for text in self.texts)
            self._batch = self._with_slots(self._batch, self._used + CHUNK)
        how = columns([text.sampling if text else GREEDY for text in self._texts])
        active = np.array([text is not None for text in self._texts])
        cache, state = self._batch.replace(used=np.int32(self._used)), self._state.replace(active=active)
        self._batch, self._state = self._next(self._params, cache, state, self._key_data, how)
        self._used += 1
        newest, continues = jax.device_get((self._state.newest, self._state.active))
        for row, text in enumerate(self._texts):
            if text:
                self._add(text, int(newest[row]), bool(continues[row]))
                self._texts[row] = None if text.ended else text

    def drop(self, text: Text) -> None:
        """Frees the row of a text whose client has left or needs no more of it."""
        if text in self._texts:
            self._texts[self._texts.index(text)] = None

    def score(self, ids: np.ndarray) -> Scores:
        """Returns the log-probabilities of ids [T], 1 to context."""
        length = min(max(SHORTEST, power_of_two(len(ids))), self._config.context)
        found = self._score(self._params, np.pad(ids, (0, length - len(ids)))[None].astype(np.int32))
        log_probs, top_ids, top = (np.asarray(each)[: len(ids)] for each in found)
        return Scores(log_probs[:-1], top_ids, top)

    def _add(self, text: Text, newest: int, continues: bool) -> None:
        if self._is_stop[newest]:
            text.ended, text.stop = "stop", newest
            return
        text.ids.append(newest)
        if not continues or len(text.ids) >= text.most:
            text.ended = "length"

    def _scores(self, params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns for tokens [1, T] the log-probability [T] of each next one, the top ids and theirs [T, TOP]."""
        hidden = self._model.apply({"params": params}, tokens, method="hidden")[0]  # [T, D]

        def of_position(inputs: tuple) -> tuple:
            state, following = inputs
            log_probs = jax.nn.log_softmax(self._model.apply({"params": params}, state, method="head"))
            top, top_ids = jax.lax.top_k(log_probs, TOP)
            return log_probs[following], top_ids, top

        return jax.lax.map(of_position, (hidden, jnp.roll(tokens[0], -1)), batch_size=SCORED)


def _place(batch: Cache, state: State, cache: Cache, chosen: State, row: jax.Array) -> tuple[Cache, State]:
    """Returns the batch and its state with a text of one row in this row; slots behind its tokens stay as they are."""
    slots = batch.filled.shape[1]  # more slots of the one row have no token

    def put(into: jax.Array, value: jax.Array, axis: int = 0) -> jax.Array:
        return jax.lax.dynamic_update_slice(into, value, [row if each == axis else 0 for each in range(into.ndim)])

    batch = batch.replace(
        keys=put(batch.keys, cache.keys[:, :, :, :slots], 1),
        values=put(batch.values, cache.values[:, :, :, :slots], 1),
        filled=put(batch.filled.at[row].set(False), cache.filled[:, :slots]),
        length=put(batch.length, cache.length),
    )
    return batch, jax.tree.map(put, state, chosen)


def _compact(batch: Cache) -> Cache:
    """Returns the cache with the filled slots of each row first, in their order."""
    order = jnp.argsort(~batch.filled, axis=1, stable=True)
    slots = order[None, :, None, :, None]
    return batch.replace(
        keys=jnp.take_along_axis(batch.keys, slots, axis=3),
        values=jnp.take_along_axis(batch.values, slots, axis=3),
        filled=jnp.take_along_axis(batch.filled, order, axis=1),
    )
