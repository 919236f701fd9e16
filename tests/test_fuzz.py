"""Any file or command line is read or refused in one paragraph: no crash, no hang, bounded memory.

test_formats.py and test_audit.py draw benchmarks and predictions, test_tokenizer.py texts, test_teacher.py replies.
"""

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ghost_jax.config import load as config_lib
from ghost_jax.config.keys import DOMAINS
from ghost_jax.core.errors import UserError
from tests.test_sources_formats import BOMB, SAMPLES

SECONDS = 10  # for one drawn file, on a busy machine
MEMORY = 1 << 30  # bytes that reading a file of some kilobytes must not take

# format -> (suffix, a valid file, its reader)
SOUND = {name: (path.suffix, path.read_bytes(), read) for name, (path, read) in SAMPLES.items()}

LONG = ["(" * 5000, "<p" * 5000, " " * 9999 + "x", "[a](" * 3000, "A. " * 3000, "\n" * 9999, "&" * 5000, "9" * 5000]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([*LONG, 10**400])
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
BYTES = st.binary(max_size=8) | st.sampled_from(
    [
        *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\r"),
        *(b'"', b"<", b"]", b"{", b"-", b"[" * 20000, b"<a>" * 20000, b"&a;", BOMB.encode()),
        *(b"9" * 5000, b"1e999", b"NaN", b"\x1f\x8b", b"PK\x03\x04"),
    ]
)


def places_in(value: object, place: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, child in inner for found in places_in(child, (*place, key)))]


def replaced(node: object, place: tuple, new: object) -> object:
    if not place:
        return new
    changed = copy.copy(node)
    changed[place[0]] = replaced(node[place[0]], place[1:], new)
    return changed


def damaged(suffix: str, data: bytes) -> st.SearchStrategy[bytes]:
    """Draws a file with other bytes at a place or, where it is JSON, another value at a place; sometimes itself."""
    places = st.tuples(st.integers(0, len(data)), st.sampled_from([0, 1, 9, len(data)]))
    drawn = st.just(data) | st.builds(lambda at, new: data[: at[0]] + new + data[sum(at) :], places, BYTES)
    if suffix not in (".json", ".jsonl"):
        return drawn
    document = json.loads(data if suffix == ".json" else data.split(b"\n")[1])
    changed = st.builds(replaced, st.just(document), st.sampled_from(places_in(document)), ANYTHING)
    return drawn | changed.map(lambda value: json.dumps(value).encode())


@pytest.fixture
def bounded():
    """Bounds the processor time and the memory of a test."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    yield
    assert time.process_time() - start < 4 * SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MEMORY


def refusal_of(attempt: Callable[[], object]) -> str:
    """Returns the message of a `UserError`, "" where there is none."""
    message = ""
    try:
        attempt()
    except UserError as fault:
        message = str(fault) or "a refusal without a message"
    assert len(message) < 2_000
    return message


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", SOUND)
def test_any_file_of_a_publisher_is_read_or_refused_by_name(tmp_path, name):
    suffix, data, read = SOUND[name]
    path = tmp_path / f"file{suffix}"

    @settings(max_examples=60, deadline=SECONDS * 1000)
    @given(damaged(suffix, data))
    @example(data)
    def drawn(content):
        path.write_bytes(content)
        message = refusal_of(lambda: [record.text.encode() for record in read(path)])  # no half of a surrogate pair
        assert not message or (str(path) in message and content != data)

    drawn()


CONFIG = "configs/chat_v5.py:nano"


KEYS = [*DOMAINS, *(f"base.{key}" for key in DOMAINS)]
HOSTILE = ["1e999", "-1e999", "nan", "-" * 5000 + "1", "(" * 5000, "[" * 150 + "]" * 150, "9" * 4300, "1" + "0" * 400]
TYPED = ["None", "", "0", "-1", "3", "1_0", "0x10", "b'a'", "True", "()", "{}", "1j", "\0", "\udcff"]
TEXTS = st.sampled_from([*HOSTILE, *TYPED]) | st.integers().map(str) | st.floats().map(repr) | st.text(max_size=10)
WORDS = st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), TEXTS).map("=".join) | st.text(max_size=12)


@pytest.mark.usefixtures("bounded")
@settings(max_examples=150, deadline=SECONDS * 1000)
@given(st.lists(WORDS, min_size=1, max_size=2))
@example(["steps=3"])
def test_any_value_on_the_command_line_gives_a_config_that_json_can_hold_or_is_refused(words):
    argv = [f"--config={CONFIG}", *(f"--config.{word}" for word in words)]

    def keep() -> None:
        config, _ = config_lib.parse(argparse.ArgumentParser(), argv)
        json.dumps(config.to_dict(), allow_nan=False)  # as a run directory does

    message = refusal_of(keep)
    assert not message or words != ["steps=3"]
