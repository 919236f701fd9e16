"""Where a config's sources are searched for, what replaces a missing one, and what a message about it names."""

import re

import pytest
import requests

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import Input, locate
from ghost_jax.data.downloads.published import PUBLISHED
from ghost_jax.data.prepare import prepare
from ghost_jax.data.sources import SOURCES
from ghost_jax.data.sources.data_files import absent

ATTACK = ("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    monkeypatch.delenv("GHOST_DATA", raising=False)
    return tmp_path / "cache" / "ghost_jax"


@pytest.fixture
def data(tmp_path, cache):
    """An empty data folder, the only one beside the cache."""
    for name in ("raw", "corpus", "ctibench"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def put(folder, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{}")


def found(data, *names: str, stand_in: bool = False) -> tuple[list[Input], tuple[str, ...]]:
    return locate(names, str(data), print, stand_in=stand_in)


PUBLISHERS = [name for name, source in SOURCES.items() if source.stems]
NEARLY_NAMED = [
    ("attack", "raw/enterprise-attack-19.1.json"),
    ("capec", "stix-capec.json"),
    ("nvd", "raw/nvdcve-1.1-2020.json.gz"),
    ("nvd", "raw/nvdcve-2.0-modified.json.gz"),  # of changes to the years' files
    ("cti", "corpus/CTI.jsonl"),
]
PARTS = [("attack", "raw/mobile-attack-15.1.json"), ("nvd", "raw/nvdcve-2.0-2024.json")]


@pytest.mark.parametrize(("name", "there"), [*((name, "") for name in PUBLISHERS), *NEARLY_NAMED, *PARTS])
def test_a_source_that_is_not_there_is_refused_with_its_files_the_folders_and_the_command(data, cache, name, there):
    if there:
        put(data, there)
    with pytest.raises(UserError) as caught:
        found(data, name, "embedded")
    command = f"--sources={name}" if name in PUBLISHED else f"corpus/{name}.jsonl"
    for named in (absent(name, [])[0], f"{data}, {cache / 'data'}", str(data / there), command):
        assert named in str(caught.value)


def test_what_is_missing_is_printed_before_a_publisher_is_asked_and_none_where_it_is_refused(data, monkeypatch, capsys):
    printed = []

    def ask(*_, **__):
        printed.append(capsys.readouterr().out)
        raise requests.ConnectionError

    monkeypatch.delenv("GHOST_OFFLINE")
    monkeypatch.setattr(requests, "head", ask)
    with pytest.raises(UserError, match=r"--config\.data\.sources=attack,embedded[, ]"):
        found(data, "attack", "cti", "embedded")
    assert not printed
    with pytest.raises(UserError):
        found(data, "attack", "embedded")
    assert "--sources=attack" in printed[0]


def test_complete_sources_are_located_in_the_order_of_the_config_before_parts_elsewhere(data, cache):
    (cache / "data" / "raw").mkdir(parents=True)
    put(cache / "data" / "raw", *ATTACK)
    put(data, f"raw/{ATTACK[0]}", "raw/cwec_v4.14.xml", "corpus/cti.jsonl")
    inputs, notes = found(data, "cti", "embedded", "attack", "cwe")
    assert [each.source for each in inputs] == ["cti", "embedded", "attack", "attack", "attack", "cwe"]
    assert {each.path.parents[1] for each in inputs if each.source == "attack"} == {cache / "data"}
    assert (inputs[1].path, notes) == (None, ())


def test_a_part_of_a_source_is_used_with_a_note_in_place_of_a_refusal(data):
    put(data, f"raw/{ATTACK[2]}")
    inputs, notes = found(data, "attack", "embedded", stand_in=True)
    assert [each.path.name for each in inputs if each.path] == [ATTACK[2]]
    assert all(name in notes[0] for name in (*ATTACK, str(data), "--sources=attack"))


@pytest.mark.parametrize("config", ["pretrain_v05.py", "pretrain_v05.py:mini", "chat_v5.py"])
def test_a_preset_that_is_not_nano_is_not_prepared_without_its_sources(data, cache, config):
    with pytest.raises(UserError, match="nano"):
        prepare(config_lib.load(f"configs/{config}"), str(data))
    assert not (cache / "stores").exists()


def test_a_file_of_no_source_is_named_once(data):
    strays = ("raw/enterprise-attack-19.1.json", "corpus/reports.jsonl", "cti.json")
    put(data, *strays)
    put(data, "README.md", "raw/readme", "raw/LICENSE.txt", "raw/LICENCE", "NOTICE", "raw/COPYING", ".hidden")
    put(data, "ctibench/cti-mcq.tsv", "raw/nvdcve-2.0-2003.meta", "raw/cwec_v4.14.xml.zip.partial", "kev.json.part")
    put(data, "raw/x.partial.etag", "raw/enterprise-attack-18.1.json.xz", "corpus/cve.jsonl.gz")
    _, (note,) = found(data, "embedded")
    assert sorted(re.findall(rf"{re.escape(str(data))}/([^,\s]+\w)", note)) == sorted(strays)
