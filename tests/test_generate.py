"""generate.py and engine.py: the same text with a cache as without one, whatever stands beside it, on any devices."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.inference.engine import TOP, Engine, Text
from ghost_jax.inference.generate import CHUNK, TAIL, Generator
from ghost_jax.inference.sampling import GREEDY, Sampling
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import make_mesh
from tests import models
from tests.models import needs_eight, one_device, slow

V05 = ModelConfig(layers=2, width=32, heads=4, mlp_dim=48, vocab_size=100, context=64)
V04 = dataclasses.replace(V05, generation="v04")
SMALL = dataclasses.replace(V05, layers=1)
# More than a stream's first cache holds; learned positions end where the context does, rotary ones nowhere.
LONG = dataclasses.replace(SMALL, context=320, generation="v04")
LENGTHS = (1, 5, 11, 32)  # of one padded length
NEW = 9
WARM = Sampling(temperature=1.5)
ONCE = Sampling(repetition_penalty=1e4)  # no token twice


# So large that texts do not repeat themselves: a token in a wrong place changes what follows.
build = functools.partial(models.build, std=0.3)


@functools.cache
def generator(config: ModelConfig = SMALL, new_tokens: int = NEW, stop_ids: tuple[int, ...] = (99,)) -> Generator:
    return Generator(config, build(config), one_device(), batch_size=4, new_tokens=new_tokens, stop_ids=stop_ids)


def prompt_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 99, length).astype(np.int32)


def prompts_of(lengths=LENGTHS) -> list[np.ndarray]:
    return [prompt_of(length, n) for n, length in enumerate(lengths)]


def keys_of(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(3), count)


@functools.partial(jax.jit, static_argnums=0)
def forward(config: ModelConfig, params: dict, tokens: jax.Array) -> jax.Array:
    return Transformer(config).apply({"params": params}, tokens)


def plainly(config: ModelConfig, prompt: np.ndarray, new_tokens: int = NEW, stop_ids=(99,)) -> list[int]:
    ids = prompt.tolist()
    while len(ids) < min(len(prompt) + new_tokens, config.context):
        tokens = np.pad(ids, (0, config.context - len(ids))).astype(np.int32)
        best = int(forward(config, build(config), tokens[None])[0, len(ids) - 1].argmax())
        if best in stop_ids:
            break
        ids.append(best)
    return ids[len(prompt) :]


def as_lists(texts: list[np.ndarray]) -> list[list[int]]:
    return [text.tolist() for text in texts]


def compiled_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]


@pytest.mark.parametrize("config", [V05, V04, slow(dataclasses.replace(V05, scan=True))], ids=["v05", "v04", "scan"])
def test_greedy_text_is_that_of_full_forward_passes_up_to_a_stop_or_the_end_of_the_context(config):
    prompts = prompts_of((34, 38, 43, 60, 63))
    free = [plainly(config, prompt, NEW, ()) for prompt in prompts]
    assert list(map(len, free)) == [NEW, NEW, NEW, 4, 1]
    stops = (free[1][3], free[2][0])  # in the middle of a text, and at its start
    texts = as_lists(generator(config, stop_ids=stops)(prompts))
    assert texts == [plainly(config, prompt, NEW, stops) for prompt in prompts]
    assert (len(texts[1]) < 4, texts[2]) == (True, [])
    assert any(len(set(text)) > 3 for text in free)


@pytest.mark.parametrize("sampling", [WARM, slow(GREEDY)], ids=["drawn", "greedy"])
def test_a_text_depends_on_its_key_and_neither_on_the_rows_beside_it_nor_on_being_streamed(sampling):
    prompts, keys = prompts_of((*LENGTHS, 7, 8)), keys_of(6)
    together = as_lists(generator()(prompts, sampling, keys))
    assert as_lists(generator()(prompts[::-1], sampling, keys[::-1]))[::-1] == together
    for row in (0, 3, 5):
        assert as_lists(generator()([prompts[row]], sampling, keys[row : row + 1])) == [together[row]]
        assert list(generator().stream(prompts[row], sampling, keys[row])) == together[row]
    of_one_prompt = as_lists(generator()(prompts[1:2] * 6, sampling, keys))
    assert len(set(map(tuple, of_one_prompt))) == (6 if sampling is WARM else 1)


@needs_eight
def test_eight_devices_give_the_text_of_one():
    mesh = make_mesh(2, 2, 2)
    on_eight = Generator(SMALL, build(SMALL), mesh, batch_size=3, new_tokens=NEW, stop_ids=[99])  # 3 becomes 4
    prompts, keys = prompts_of((*LENGTHS, 7)), keys_of(5)
    for sampling in (GREEDY, WARM):
        assert as_lists(on_eight(prompts, sampling, keys)) == as_lists(generator()(prompts, sampling, keys))


def test_a_warm_stream_compiles_nothing_and_reads_only_what_the_last_one_has_not(caplog):
    talks, longest = generator(LONG), prompt_of(310)
    talks.warm_up()
    # The newest id of a text is not in the cache, and the last token of a prompt is always read.
    streams = (
        (longest[:5], 0),
        (longest[: 2 * TAIL + 5], 5),
        (longest[: 2 * TAIL + 5], 2 * TAIL + 4),  # the same again
        (longest[: CHUNK + 2 * TAIL], 2 * TAIL + 5),
        (longest, CHUNK + 2 * TAIL),  # beyond the first 256 slots
        (np.append(longest[:100], prompt_of(60, 1)), 100),  # differs from token 100 on
        (prompt_of(200, 2), 0),
    )
    expected = [plainly(LONG, prompt) for prompt, _ in streams]
    key = keys_of(1)[0]
    with jax.log_compiles():
        for (prompt, cached), text in zip(streams, expected, strict=True):
            assert talks.cached(prompt) == cached
            assert list(talks.stream(prompt)) == text
        for length in (65, 254, 257, 319):
            list(talks.stream(prompt_of(length), Sampling(0.7, 5, 0.9, 1.5), key))
    assert not compiled_of(caplog)


def test_a_conversation_continues_from_its_own_text_and_from_an_answer_left_early():
    talks, prompt = generator(LONG), prompt_of(200, 3)
    for leave_after in (NEW, 4, 1):
        answer = list(itertools.islice(talks.stream(prompt), leave_after))
        assert answer == plainly(LONG, prompt)[:leave_after]
        following = np.concatenate([prompt, answer, prompt_of(20, leave_after)]).astype(np.int32)
        assert talks.cached(following) == len(prompt) + leave_after - 1
        prompt = following


@pytest.mark.parametrize("length", [0, 64, 100])
def test_a_prompt_without_a_possible_answer_is_refused(length):
    prompt = np.zeros(length, np.int32)
    for generate in (lambda: generator()([prompt]), lambda: next(generator().stream(prompt))):
        with pytest.raises(UserError, match=f"{length} tokens"):
            generate()
    assert generator()([]) == []


def test_batches_are_padded_to_few_shapes_and_other_sampling_compiles_nothing(caplog):
    fresh = generator(new_tokens=NEW - 1)
    batches = [(prompts_of(lengths), keys_of(len(lengths))) for lengths in ((1,), (5, 30, 31), (2,) * 9, (30, 31, 9))]
    with jax.log_compiles():
        for prompts, keys in batches[:2]:
            fresh(prompts, GREEDY, keys)
        assert compiled_of(caplog)
        caplog.clear()
        for prompts, keys in batches:
            for sampling in (WARM, Sampling(0.7, top_k=5), Sampling(2.0, 3, 0.2, 1.5)):
                fresh(prompts, sampling, keys)
    assert not compiled_of(caplog)


def test_a_repetition_penalty_counts_prompt_and_text_and_spares_the_stops():
    candidates = (np.random.default_rng(seed).permutation(99)[:32].astype(np.int32) for seed in range(99))
    prompt = next(prompt for prompt in candidates if plainly(SMALL, prompt, 1)[0] in prompt)
    text = generator()([prompt], ONCE)[0].tolist()
    assert len(set(text) - set(prompt.tolist())) == len(text) == NEW
    assert list(generator().stream(prompt, ONCE)) == text
    stop = plainly(SMALL, prompt, 1)[0]
    assert not len(generator(stop_ids=(stop,))([prompt], ONCE)[0])


def engine_of(config: ModelConfig, rows: int) -> Engine:
    return Engine(config, build(config), one_device(), batch_size=rows, new_tokens=config.context, stop_ids=(99,))


def text_of(number: int, length: int, most: int, sampling: Sampling) -> Text:
    return Text(prompt_of(length, number), sampling, np.asarray(jax.random.key_data(jax.random.key(number))), most)


def test_texts_are_those_of_a_stream_whatever_joins_leaves_or_is_dropped():
    engine, rng = engine_of(LONG, 3), np.random.default_rng(0)
    # The cache of the batch is short, grows, and is moved together.
    sizes = [(5, 300), (200, 60), (90, 200), (1, 40), (300, 19), (30, 280), (64, 9), (250, 50), (2, 200), (7, 1)]
    texts = [text_of(n, *size, (GREEDY, WARM)[n % 2]) for n, size in enumerate(sizes)]
    dropped = text_of(99, 20, 250, WARM)
    waiting = [*texts[:4], dropped, *texts[4:]]
    while waiting or engine.texts:
        if waiting and not engine.is_full:
            for _ in engine.admit(waiting.pop(0)):
                if engine.texts and rng.random() < 0.5:  # the others go on while a prompt is read
                    engine.step()
        if engine.texts:
            engine.step()
        if len(dropped.ids) > 9:
            engine.drop(dropped)
    alone = generator(LONG, new_tokens=LONG.context)
    for text in texts:
        expected = list(alone.stream(text.prompt, text.sampling, jax.random.wrap_key_data(text.key_data)))
        assert text.ids == expected[: text.most]
        full = len(expected) >= text.most or len(expected) + len(text.prompt) == LONG.context
        assert (text.ended, text.stop) == (("length", None) if full else ("stop", 99))
    assert {text.ended for text in texts} == {"stop", "length"}


def test_scores_are_log_probabilities_of_a_forward_pass():
    engine, ids = engine_of(SMALL, 1), prompt_of(50)
    expected = np.asarray(jax.nn.log_softmax(forward(SMALL, build(SMALL), ids[None])[0]))
    found = engine.score(ids)
    np.testing.assert_allclose(found.log_probs, expected[np.arange(49), ids[1:]], atol=1e-4)
    np.testing.assert_allclose(found.top_log_probs, -np.sort(-expected)[:, :TOP], atol=1e-4)
    assert (found.top_ids[:, 0] == expected.argmax(-1)).all()
