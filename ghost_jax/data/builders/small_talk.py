"""Hand-written small talk, so that a chat model answers a greeting."""

from ghost_jax.data.examples import BuildInputs, Conversation, Rows
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage.schema import split_of
from ghost_jax.text.chat_format import Message

VERSION = 1  # raise it when a pair changes or gives another conversation


def dataset(inputs: BuildInputs) -> Rows:
    """Returns the rows of the hand-written pairs."""
    return inputs.render(
        Conversation(user, "embedded", (Message("user", user), Message("assistant", assistant)), split_of(user))
        for user, assistant in embedded.small_talk()
    )
