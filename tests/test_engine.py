"""engine.py: texts that join and leave a batch at any step are those of a stream alone."""

import jax
import numpy as np

from ghost_jax.inference.engine import TOP, Engine, Text
from ghost_jax.inference.generate import CHUNK
from ghost_jax.inference.sampling import GREEDY, Sampling
from ghost_jax.model.transformer import Transformer
from tests.models import one_device
from tests.test_generate import LONG, SMALL, WARM, build, generator, prompt_of

STOP = 99


def engine_of(config, rows: int) -> Engine:
    size = {"batch_size": rows, "new_tokens": config.context, "stop_ids": (STOP,)}
    return Engine(config, build(config), one_device(), **size)


def text_of(number: int, length: int, most: int, sampling: Sampling) -> Text:
    return Text(prompt_of(length, number), sampling, np.asarray(jax.random.key_data(jax.random.key(number))), most)


def test_texts_are_those_of_a_stream_whatever_joins_leaves_or_is_dropped():
    engine, rng = engine_of(LONG, 3), np.random.default_rng(0)
    sizes = [(5, 300), (200, 60), (90, 200), (1, 40), (300, 19), (30, 280), (64, 9), (250, 50), (2, 200), (7, 1)]
    texts = [text_of(n, *size, (GREEDY, WARM)[n % 2]) for n, size in enumerate(sizes)]
    dropped = text_of(99, 20, 250, WARM)
    waiting, slots = [*texts[:4], dropped, *texts[4:]], set()
    while waiting or engine.texts:
        if waiting and not engine.is_full:
            for _ in engine.admit(waiting.pop(0)):
                if engine.texts and rng.random() < 0.5:  # the others go on while a prompt is read
                    engine.step()
        if engine.texts:
            engine.step()
        slots.add(engine._batch.filled.shape[1])
        if len(dropped.ids) > 9:
            engine.drop(dropped)
    assert slots == {256, LONG.context + CHUNK}
    alone = generator(LONG, new_tokens=LONG.context, stop_ids=(STOP,))
    for text in texts:
        expected = list(alone.stream(text.prompt, text.sampling, jax.random.wrap_key_data(text.key_data)))
        assert text.ids == expected[: text.most]
        full = len(expected) >= text.most or len(expected) + len(text.prompt) == LONG.context
        assert text.ended == ("length" if full else "stop")
    assert {text.ended for text in texts} == {"stop", "length"}
    for _ in engine.admit(text_of(1, 5, 3, GREEDY)):
        pass
    assert engine._batch.filled.shape[1] == 256, "a long text leaves no long cache behind"


def test_scores_are_log_probabilities_of_a_forward_pass():
    engine, ids = engine_of(SMALL, 1), prompt_of(50)
    logits = Transformer(SMALL).apply({"params": build(SMALL)}, ids[None])[0]
    expected = np.asarray(jax.nn.log_softmax(logits))
    found = engine.score(ids)
    np.testing.assert_allclose(found.log_probs, expected[np.arange(49), ids[1:]], atol=1e-4)
    np.testing.assert_allclose(found.top_log_probs, -np.sort(-expected)[:, :TOP], atol=1e-4)
    assert (found.top_ids[:, 0] == expected.argmax(-1)).all()
