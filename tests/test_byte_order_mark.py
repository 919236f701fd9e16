"""A byte order mark at the start of a text: of UTF-8 it is skipped in every format, of UTF-16 it is refused."""

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest

from ghost_jax.chat import piped_lines
from ghost_jax.core import atomic_io
from ghost_jax.core.errors import UserError
from ghost_jax.data.sources import SOURCES
from ghost_jax.data.storage import tables
from tests.test_fuzz import SOUND


def lines_of(path: Path) -> list[str]:
    with path.open("rb") as stream:
        return list(piped_lines(stream))


# What is read -> the suffix of its file, a valid file, its reader
TEXTS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    **{name: (suffix, data, lambda path, read=read: list(read(path))) for name, (suffix, data, read) in SOUND.items()},
    "a table of tabs": (".tsv", b"id\tmine\nq\tB\n", lambda path: list(tables.read(path))),
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
