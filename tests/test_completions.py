"""server/answers.py: the tokens, log-probabilities and counts of a completion whose ids are scripted."""

import asyncio
import dataclasses
import json
import types

import numpy as np
import pytest

from ghost_jax.inference.engine import TOP, Scores
from ghost_jax.server.answers import complete
from ghost_jax.server.schemas import CompletionRequest
from ghost_jax.server.served import Model


@pytest.fixture(scope="module")
def model(tiny_run) -> Model:
    return Model.load(tiny_run.workdir, rows=1, waiting=1, most=12)


@dataclasses.dataclass
class Scripted:
    """A scheduler that says these ids, and then a stop id where there is one."""

    said: list[int]
    stop: int | None

    async def generate(self, text):
        text.ids, text.stop = list(self.said), self.stop
        yield text.ids, "length" if self.stop is None else "stop"
        text.ids.append(self.said[0])  # the engine goes on while it is being told to stop

    async def score(self, ids):
        top = np.tile([*self.said, self.stop or 0][:TOP], (len(ids), 1))
        return Scores(np.zeros(len(ids) - 1), top, np.zeros(top.shape) - 1.0)

    engine = types.SimpleNamespace(max_answer=lambda _: 100)


def completed(model, said: list[int], stop: int | None = None, until: str | None = None) -> dict:
    """The one choice of a completion whose ids are scripted, with how many it is said to have."""
    request = CompletionRequest(model="tiny", prompt="x", logprobs=TOP, max_tokens=50, stop=until)
    scripted = dataclasses.replace(model, scheduler=Scripted(said, stop))
    answer = json.loads(asyncio.run(complete("tiny", scripted, request, 60)).body)
    return answer["choices"][0] | {"count": answer["usage"]["completion_tokens"]}


def test_a_completion_names_the_stop_that_was_chosen_and_ends_at_a_stop_text(model):
    decode, end = model.tokenizer.decode, model.stops[-1]
    said = model.tokenizer.encode("ab cd ef")
    whole = completed(model, said, end)
    assert whole["logprobs"]["tokens"] == [decode([i]) for i in [*said, end]]
    assert (whole["text"], whole["count"]) == ("ab cd ef", len(said)), "without the stop, as in a stream"
    cut = completed(model, said, None, until="cd")
    assert (cut["text"], cut["finish_reason"]) == ("ab ", "stop")
    assert "".join(cut["logprobs"]["tokens"]).startswith("ab ")
    assert len(cut["logprobs"]["tokens"]) < cut["count"] <= len(said), "with the stop text, as in a stream"
    assert completed(model, said, end, until="cd") == cut, "a stop that was chosen behind the stop text is not named"


def test_a_part_of_a_character_is_spelled_as_its_bytes(model):
    first, second = model.tokenizer.encode("é".encode()[:1]), model.tokenizer.encode("é".encode()[1:])
    found = completed(model, [*first, *second, *model.tokenizer.encode("z!")], until="!")["logprobs"]
    assert found["tokens"] == [r"bytes:\xc3", r"bytes:\xa9", "z"]
    assert found["text_offset"] == [0, 0, 1]
    assert {r"bytes:\xc3", r"bytes:\xa9"} <= found["top_logprobs"][0].keys()
