"""Small talk of the project's own, so that a chat model answers a greeting."""

from collections.abc import Iterator

from ghost_jax.data.builders import Conversation
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage.schema import split_of
from ghost_jax.text.chat_format import Message

VERSION = 1  # raise it when the same pairs give other conversations


def build() -> Iterator[Conversation]:
    """Yields the hand-written pairs; those of the test split are kept out of training like every other builder's."""
    for user, assistant in embedded.small_talk():
        yield Conversation(user, "embedded", (Message("user", user), Message("assistant", assistant)), split_of(user))
