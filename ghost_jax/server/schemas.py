"""What clients may send: the OpenAI API's fields that this server honours, and those that it accepts at their defaults.

Any other field is refused by its name, so that no request is answered as if an option had been followed.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ghost_jax.inference.engine import TOP
from ghost_jax.inference.sampling import Sampling

MOST_MESSAGES = 256
MOST_PROMPTS = 128
MOST_CHARACTERS = 1 << 18  # of a text
MOST_STOPS = 16
MOST_READ = 1 << 15  # characters of a question with its options, for the reader
OPTIONS = 10

Textual = Annotated[str, Field(max_length=MOST_CHARACTERS)]
# Of a list that may be long, one error is enough: to report half a million of them takes seconds.
Ids = Annotated[list[int], Field(fail_fast=True)]
Prompts = Field(max_length=MOST_PROMPTS, fail_fast=True)


class Strict(BaseModel):
    """An object without unknown fields, NaN or infinity. A null is the absence of a field, as the API has it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, found: Any) -> Any:
        return {key: value for key, value in found.items() if value is not None} if isinstance(found, dict) else found


class TextPart(Strict):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: Textual


class ChatMessage(Strict):
    """A turn. A system turn is put in front of the user's first one, where the chat format has no system role."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Textual | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    citations: list | None = None  # of an answer of this server that a client sends back; not read

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool = False


class Generation(Strict):
    """What chat completions and completions share. Without a temperature the most probable token is chosen."""

    model: Textual
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    max_tokens: int | None = Field(None, ge=0)
    stop: Textual | Annotated[list[Textual], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Accepted at the values at which they change nothing.
    n: Literal[1] = 1
    presence_penalty: float = Field(0, ge=0, le=0)
    frequency_penalty: float = Field(0, ge=0, le=0)
    logit_bias: None = None
    user: str | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class ChatRequest(Generation):
    """The body of /v1/chat/completions."""

    max_tokens: int | None = Field(None, ge=1)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] = False
    response_format: dict[str, Literal["text"]] | None = None


class CompletionRequest(Generation):
    """The body of /v1/completions. A prompt may be ids; plain text is read behind BOS where the vocabulary has it."""

    prompt: Textual | Ids | Annotated[list[Textual], Prompts] | Annotated[list[Ids], Prompts]
    logprobs: int | None = Field(None, ge=0, le=TOP)
    echo: bool = False
    best_of: Literal[1] = 1
    suffix: None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, also where one alone was given."""
        several = isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]


class ReadRequest(Strict):
    """The body of /v1/read: a question for the lexical reader, with up to ten options or none."""

    question: Textual = Field(min_length=1)
    options: list[Textual] = Field([], max_length=OPTIONS)


class TokenizeRequest(Strict):
    """The body of /tokenize."""

    prompt: Textual
    add_special_tokens: Literal[False] = False


class DetokenizeRequest(Strict):
    """The body of /detokenize."""

    tokens: Ids = Field(max_length=MOST_CHARACTERS)
