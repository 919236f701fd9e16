"""generate.py: with a cache the same text as without, whatever stands beside it, on one device or eight."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from ghost_jax.core.errors import UserError
from ghost_jax.inference.generate import CHUNK, TAIL, Generator
from ghost_jax.inference.sampling import GREEDY, Sampling
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import AXES, make_mesh

V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=100, context=64)
V04 = dataclasses.replace(V05, generation="v04")
SMALL = dataclasses.replace(V05, layers=1)  # compiles faster, where layers are not the point
# More than a stream's first cache holds; learned positions end where the context does, rotary ones nowhere.
LONG = dataclasses.replace(SMALL, context=320, generation="v04")
LENGTHS = (1, 5, 11, 32)  # of one padded length, and so of one program
NEW = 9
WARM = Sampling(temperature=1.5)
every_model = pytest.mark.parametrize(
    "config",
    [V05, V04, dataclasses.replace(V05, scan=True), dataclasses.replace(V04, scan=True)],
    ids=["v05", "v04", "v05 scan", "v04 scan"],
)
needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")

pytestmark = pytest.mark.usefixtures("compile_quickly")


@functools.cache
def build(config: ModelConfig) -> dict:
    """Weights so large that texts do not repeat themselves: a token in a wrong place then changes what follows."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: transformer.init(dataclasses.replace(config, scan=False), jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(path[-1].key == "scale") + 0.3 * rng.standard_normal(leaf.shape, np.float32),
        shapes,
    )
    params["embedding"][config.vocab_size :] = 0.0
    return transformer.stack_blocks(params) if config.scan else params


@functools.cache
def one_device() -> Mesh:
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)


@functools.cache
def generator(
    config: ModelConfig = SMALL,
    mesh: Mesh | None = None,
    batch_size: int = 4,
    new_tokens: int = NEW,
    stop_ids: tuple[int, ...] = (99,),
) -> Generator:
    return Generator(
        config,
        build(config),
        mesh or one_device(),
        batch_size=batch_size,
        new_tokens=new_tokens,
        stop_ids=stop_ids,
    )


def prompts_of(lengths=LENGTHS) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 99, length).astype(np.int32) for n, length in enumerate(lengths)]


def keys_of(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(3), count)


@functools.partial(jax.jit, static_argnums=0)
def forward(config: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
    return Transformer(config).apply({"params": params}, tokens)


def plainly(config: ModelConfig, prompt: np.ndarray, new_tokens: int, stop_ids=(99,)) -> list[int]:
    """Greedy text by a whole forward pass for each token."""
    ids = [int(i) for i in prompt]
    while len(ids) < min(len(prompt) + new_tokens, config.context):
        tokens = np.zeros((1, config.context), np.int32)
        tokens[0, : len(ids)] = ids
        best = int(np.asarray(forward(config, build(config), tokens))[0, len(ids) - 1].argmax())
        if best in stop_ids:
            break
        ids.append(best)
    return ids[len(prompt) :]


def as_lists(texts: list[np.ndarray]) -> list[list[int]]:
    return [text.tolist() for text in texts]


# ---- The cache ----


@pytest.mark.parametrize("config", [V05, V04], ids=["v05", "v04"])
def test_greedy_text_is_that_of_a_whole_forward_pass_for_each_token(config):
    prompts = prompts_of()
    texts = as_lists(generator(config)(prompts))
    assert texts == [plainly(config, prompt, NEW) for prompt in prompts]
    assert max(map(len, texts)) == NEW
    assert len(set(map(tuple, texts))) == len(texts)
    assert any(len(set(text)) > 3 for text in texts)


@every_model
def test_hidden_states_by_the_cache_are_those_of_the_whole_rows(config):
    model, params = Transformer(config), {"params": jax.tree.map(jnp.asarray, build(config))}
    tokens = np.random.default_rng(0).integers(0, 100, (3, 20)).astype(np.int32)
    whole = np.asarray(jax.jit(functools.partial(model.apply, method="hidden"))(params, tokens))
    lengths = np.array([4, 8, 1], np.int32)

    @jax.jit
    def in_parts(tokens: jax.Array) -> tuple:
        """A ragged prompt, then three tokens at once, then one more."""
        first, cache = model.apply(params, tokens[:, :8], lengths, 14, method="prefill")
        rest = jnp.take_along_axis(tokens, lengths[:, None] + jnp.arange(4), axis=1)
        second, cache = model.apply(params, rest[:, :3], cache, method="extend")
        third, cache = model.apply(params, rest[:, 3:], cache, method="extend")
        return first, second, third, cache.length

    first, second, third, length = map(np.asarray, in_parts(tokens))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(first[row, :n], whole[row, :n], atol=1e-4)
        np.testing.assert_allclose(second[row], whole[row, n : n + 3], atol=1e-4)
        np.testing.assert_allclose(third[row, 0], whole[row, n + 3], atol=1e-4)
    assert length.tolist() == (lengths + 4).tolist()


def test_the_cache_is_kept_in_the_type_that_is_computed_in():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    _, cache = jax.eval_shape(
        lambda params: Transformer(half).apply(
            {"params": params}, jnp.zeros((2, 8), jnp.int32), jnp.array([8, 3]), 12, method="prefill"
        ),
        build(half),
    )
    assert (cache.keys.dtype, cache.values.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert cache.keys.shape == (1, 2, 4, 12, 8)


# ---- Rows do not know each other ----


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "drawn"])
def test_a_text_does_not_depend_on_the_rows_beside_it_or_their_number(sampling):
    prompts, keys = prompts_of((*LENGTHS, 7, 8)), keys_of(6)
    together = as_lists(generator()(prompts, sampling, keys))
    backwards = as_lists(generator()(prompts[::-1], sampling, keys[::-1]))
    assert backwards[::-1] == together
    for row in (0, 3, 5):
        assert as_lists(generator()([prompts[row]], sampling, keys[row : row + 1])) == [together[row]]


@needs_eight
def test_eight_devices_give_the_text_of_one():
    on_eight = generator(mesh=make_mesh(2, 2, 2), batch_size=3)  # rounded up to 4
    prompts, keys = prompts_of((*LENGTHS, 7)), keys_of(5)
    for sampling in (GREEDY, WARM):
        assert as_lists(on_eight(prompts, sampling, keys)) == as_lists(generator()(prompts, sampling, keys))
        assert list(on_eight.stream(prompts[2], sampling, keys[2])) == generator()(prompts, sampling, keys)[2].tolist()


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "drawn"])
def test_a_stream_yields_the_text_of_the_batch(sampling):
    prompts, keys = prompts_of(), keys_of(len(LENGTHS))
    texts = as_lists(generator()(prompts, sampling, keys))
    for row in (1, 3):
        assert list(generator().stream(prompts[row], sampling, keys[row])) == texts[row]


# ---- A stream keeps what it has read ----


def long_prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 99, length).astype(np.int32)


class Reads:
    """Counts the tokens that a generator reads, and the places that they are filled up to."""

    def __init__(self, generator: Generator, monkeypatch):
        self.tokens = self.places = 0

        def counted(read):
            def reading(params, cache, start, tokens, count):
                self.tokens += int(count)
                self.places += tokens.shape[1]
                return read(params, cache, start, tokens, count)

            return reading

        for name in ("_read_body", "_read_tail"):
            monkeypatch.setattr(generator, name, counted(getattr(generator, name)))

    def since(self) -> tuple[int, int]:
        read, self.tokens, self.places = (self.tokens, self.places), 0, 0
        return read


def test_a_stream_that_begins_like_the_one_before_reads_the_rest_alone(monkeypatch):
    talks = generator(LONG)
    talks.warm_up()  # whatever was read before is forgotten
    reads = Reads(talks, monkeypatch)
    longest = long_prompt(310)
    # Of a text, what it chose last is not in the cache, and the last token of a prompt is always read.
    for prompt, tokens, bodies, tails in (
        (longest[:5], 5, 0, 1),
        (longest[: 2 * TAIL + 5], 2 * TAIL, 0, 2),
        (longest[: 2 * TAIL + 5], 1, 0, 1),  # the same again: its last token
        (longest[: CHUNK + 2 * TAIL], CHUNK - 5, 1, 1),
        (longest, 310 - CHUNK - 2 * TAIL, 4, 1),  # over the end of the first 256 slots
        (np.append(longest[:100], long_prompt(60, 1)), 60, 1, 1),  # another way from the 100th on
        (long_prompt(200, 2), 200, 3, 1),  # another conversation
    ):
        assert list(talks.stream(prompt)) == plainly(LONG, prompt, NEW), len(prompt)
        assert reads.since() == (tokens, bodies * CHUNK + tails * TAIL), len(prompt)


def test_a_conversation_goes_on_from_its_own_text_and_from_an_answer_that_was_left(monkeypatch):
    talks = generator(LONG)
    reads = Reads(talks, monkeypatch)
    prompt = long_prompt(200, 3)
    for leave_after in (NEW, 4, 1):
        answer = list(itertools.islice(talks.stream(prompt), leave_after))
        assert answer == plainly(LONG, prompt, NEW)[:leave_after]
        tokens, _ = reads.since()
        assert tokens == (200 if leave_after == NEW else 21)  # the newest turn, and what was chosen last
        prompt = np.concatenate([prompt, answer, long_prompt(20, leave_after)]).astype(np.int32)


def test_a_stream_that_failed_leaves_nothing_half_read(monkeypatch):
    talks = generator(LONG)
    prompt = long_prompt(150, 4)
    first = list(talks.stream(prompt))
    read = talks._read_tail
    calls = iter([read])

    def failing(*arguments):
        return next(calls, lambda *_: 1 / 0)(*arguments)

    monkeypatch.setattr(talks, "_read_tail", failing)
    with pytest.raises(ZeroDivisionError):
        list(talks.stream(np.append(prompt[:40], long_prompt(2 * TAIL, 5))))
    monkeypatch.setattr(talks, "_read_tail", read)
    assert list(talks.stream(prompt)) == first


# ---- Where a text ends ----


@functools.cache
def stops() -> tuple[int, ...]:
    """Ids that the model says: in the middle of a text, at its start, and of the prompt that `repeating` returns."""
    free = as_lists(generator()(prompts_of((1, 5, 11))))
    return free[1][3], free[2][0], plainly(SMALL, repeating(), 1)[0]


@functools.cache
def repeating() -> np.ndarray:
    """A prompt after which the most probable token is one of its own."""
    prompts = (np.random.default_rng(seed).permutation(99)[:32].astype(np.int32) for seed in range(99))
    return next(prompt for prompt in prompts if plainly(SMALL, prompt, 1)[0] in prompt)


def test_a_stop_ends_a_text_and_is_not_part_of_it():
    prompts = prompts_of((1, 5, 11))
    texts = as_lists(generator(stop_ids=stops())(prompts))
    assert texts == [plainly(SMALL, prompt, NEW, stops()) for prompt in prompts]
    assert (0 < len(texts[1]) < 4, texts[2]) == (True, [])


def test_a_text_ends_at_the_end_of_the_context():
    prompts = prompts_of((60, 63, 40))
    texts = as_lists(generator()(prompts))
    assert list(map(len, texts)) == [4, 1, NEW]  # the longest rows end first
    assert texts == [plainly(SMALL, prompt, NEW) for prompt in prompts]
    assert list(generator().stream(prompts[0])) == texts[0]


def test_more_new_tokens_than_the_context_takes_no_more_memory_and_changes_no_text():
    prompt = prompts_of([1])
    more = generator(new_tokens=10**12)
    ids = more(prompt)[0]
    assert ids[:NEW].tolist() == generator()(prompt)[0].tolist()
    assert NEW < len(ids) <= SMALL.context - 1 == more.room_after(1)


@pytest.mark.parametrize("length", [0, 64, 100])
def test_a_prompt_that_nothing_can_follow_is_refused(length):
    with pytest.raises(UserError, match=f"{length} tokens; the model's context of 64 takes 1 to 63"):
        generator()([np.zeros(length, np.int32)])
    with pytest.raises(UserError, match="Shorten"):
        next(generator().stream(np.zeros(length, np.int32)))


def test_no_prompts_give_no_texts():
    assert generator()([]) == []


# ---- Programs ----


def test_programs_are_compiled_for_padded_lengths_and_powers_of_two_of_rows_alone():
    fresh = generator(new_tokens=NEW - 1)
    for sampling in (GREEDY, WARM, Sampling(0.7, top_k=5), Sampling(1, top_p=0.5), Sampling(2.0, 3, 0.2, 1.5)):
        for lengths in ((1,), (5, 30, 31), (32, 7), (33,), (63, 40, 50), (1,) * 4, (2,) * 9):
            fresh(prompts_of(lengths), sampling, keys_of(len(lengths)))
    assert fresh._all._cache_size() == 5  # of 32 tokens in 1, 2 and 4 rows, of 64 in 1 and 4


@pytest.mark.parametrize(("prompts", "rows"), [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 4])])
def test_few_prompts_are_computed_in_few_rows(prompts, rows, monkeypatch):
    few, computed = generator(), []
    run = few._all

    def counted(params, tokens, *rest):
        computed.append(len(tokens))
        return run(params, tokens, *rest)

    monkeypatch.setattr(few, "_all", counted)
    few(prompts_of((5,) * prompts))
    assert computed == rows


def test_a_warm_stream_compiles_nothing():
    fresh = generator(LONG)
    fresh.warm_up()
    programs = (fresh._empty, fresh._read_body, fresh._read_tail, fresh._first, fresh._next, fresh._grown)
    compiled = [program._cache_size() for program in programs]
    assert compiled == [1, 4, 2, 2, 2, 1]  # two chunks; the caches of 256 slots and of all that the context needs
    for length in (1, 64, 65, 254, 255, 256, 257, 319):
        list(fresh.stream(long_prompt(length), Sampling(0.7, 5, 0.9, 1.5), keys_of(1)[0]))
    assert [program._cache_size() for program in programs] == compiled


# ---- Sampling ----


def test_texts_are_drawn_anew_with_another_key_and_again_with_the_same():
    prompts, keys = prompts_of((5,) * 6), keys_of(6)
    texts = as_lists(generator()([prompts[0]] * 6, WARM, keys))
    assert as_lists(generator()([prompts[0]] * 6, WARM, keys)) == texts
    assert len(set(map(tuple, texts))) == 6
    assert any(len(set(text)) > 1 for text in texts)  # a token's draw is not that of the one before it


def test_a_penalty_counts_the_prompt_and_the_text():
    """So high a penalty lets no token come twice, and none of the prompt."""
    prompt, once = np.arange(50, dtype=np.int32), Sampling(repetition_penalty=1e4)
    text = generator()([prompt], once)[0].tolist()
    assert len(set(text) - set(prompt.tolist())) == len(text) == NEW
    assert list(generator().stream(prompt, once)) == text


def test_a_penalty_spares_the_stops():
    once = Sampling(repetition_penalty=1e4)
    assert generator()([repeating()], once)[0][0] not in repeating()
    assert not len(generator(stop_ids=stops())([repeating()], once)[0])


def test_drawing_without_keys_is_an_error():
    with pytest.raises(ValueError, match="a key for each row"):
        generator()(prompts_of((3,)), WARM)
