"""A byte order mark at the start of a text: of UTF-8 it is skipped in every format, of UTF-16 it is refused."""

import codecs
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.analysis.predictions import read_predictions
from ghost_jax.chat import piped_lines
from ghost_jax.core import atomic_io
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.sources import SOURCES
from tests.test_fuzz import SOUND

OPTIONS = {"A": "1", "B": "2", "C": "3", "D": "4"}
ITEM = json.dumps({"id": "q", "question": "Which?", "options": OPTIONS, "answer": "B"}).encode()
SECQA = b"Question,A,B,C,D,Answer,Explanation\nWhich?,1,2,3,4,B,So.\n"
CYBERMETRIC = {"questions": [{"question": "Which?", "answers": OPTIONS, "solution": "B"}]}
CTIBENCH = b"URL\tQuestion\tOption A\tOption B\tOption C\tOption D\tPrompt\tGT\nu\tWhich?\t1\t2\t3\t4\tp\tB\n"


def predictions_of(path: Path) -> list:
    (items := path.with_name("items.jsonl")).write_bytes(ITEM)
    return [each.answers.said[0].tolist() for each in read_predictions(path, read_items(items))]


def lines_of(path: Path) -> list[str]:
    with path.open("rb") as stream:
        return list(piped_lines(stream))


def questions_of(path: Path) -> list:
    return [(item.question, item.options, item.answer) for item in read_items(path)]


def records_of(read: Callable, path: Path) -> list:
    return list(read(path))


# What is read -> the suffix of its file, a valid file, its reader
TEXTS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    **{name: (suffix, data, functools.partial(records_of, read)) for name, (suffix, data, read) in SOUND.items()},
    "items a line": (".jsonl", ITEM, questions_of),
    "items of commas": (".csv", SECQA, questions_of),
    "items of tabs": (".tsv", CTIBENCH, questions_of),
    "items in an object": (".json", json.dumps(CYBERMETRIC).encode(), questions_of),
    "predictions of commas": (".csv", b"id,mine\nq,B\n", predictions_of),
    "predictions of tabs": (".tsv", b"id\tmine\nq\tB\n", predictions_of),
    "predictions a line": (".jsonl", b'{"id": "q", "mine": "B"}', predictions_of),
    "a record of a run": (".json", b'{"a": 1}', atomic_io.read_json),
    "standard input": ("", b'{"prompt": "one"}\ntwo\n', lines_of),
}


def test_every_reader_of_a_source_is_tried():
    assert {SOURCES[name].reader for name in SOUND} == {source.reader for source in SOURCES.values() if source.stems}


@pytest.mark.parametrize("name", TEXTS)
def test_a_mark_of_utf_8_is_skipped_and_utf_16_is_refused(tmp_path, name):
    suffix, data, read = TEXTS[name]
    plain, marked = (tmp_path / f"{kind}{suffix}" for kind in ("plain", "marked"))
    plain.write_bytes(data)
    marked.write_bytes(codecs.BOM_UTF8 + data)
    found = read(plain)
    assert found
    assert read(marked) == found
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        marked.write_bytes(mark + data.decode().encode(encoding))
        with pytest.raises(UserError, match=r"(marked|Standard input).* UTF-16"):
            read(marked)
