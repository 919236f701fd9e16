"""ghost_jax/core/errors.py: what the user can put right ends a command with one paragraph."""

import signal

import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.core.errors import FAILED, command


@pytest.fixture
def sigterm():
    """A command takes SIGTERM over; the tests have theirs back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("take", [lambda: np.zeros(1 << 50), lambda: jnp.zeros(1 << 46)], ids=["numpy", "jax"])
def test_too_little_memory_is_answered_with_a_paragraph(capsys, take):
    assert command(lambda argv: len(take()))() == FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: The memory is full")
    assert "micro_batch_size" in said
