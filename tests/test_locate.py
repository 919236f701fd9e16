"""Where a config's sources are searched for, what replaces a missing one, and what the user reads about it."""

import argparse
import re

import pytest

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.data.corpus import Inputs, locate
from ghost_jax.data.downloads.published import PUBLISHED
from ghost_jax.data.prepare import prepare
from ghost_jax.data.sources import SOURCES
from ghost_jax.data.sources.data_files import absent
from tests.conftest import TINY, set_all

ATTACK = ("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder, the only one, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    monkeypatch.delenv("GHOST_DATA", raising=False)
    for name in ("raw", "corpus", "ctibench"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def put(folder, *names: str) -> None:
    for name in names:
        (folder / name).write_text("{}")


def found(data, *names: str, stand_in: bool = False) -> Inputs:
    return locate(names, str(data), print, stand_in=stand_in)


def refusal(data, *names: str, stand_in: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        found(data, *names, stand_in=stand_in)
    return str(caught.value)


def files_of(inputs: Inputs) -> list[str]:
    return [each.path.name for each in inputs.files if each.path]


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.stems])
def test_a_missing_source_is_refused_with_its_files_the_folders_and_the_command(data, tmp_path, name):
    message = refusal(data, name, "embedded")
    assert absent(name, [])[0] in message
    assert f"{data}, {tmp_path / 'cache' / 'ghost_jax' / 'data'}" in message
    assert (f"--sources={name}" if name in PUBLISHED else f"corpus/{name}.jsonl") in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("attack", "raw/enterprise-attack-19.1.json"),
        ("capec", "stix-capec.json"),
        ("nvd", "raw/nvdcve-1.1-2020.json.gz"),
        ("cti", "corpus/CTI.jsonl"),
    ],
)
def test_a_file_of_nearly_the_right_name_is_named(data, name, near):
    put(data, near)
    for message in (refusal(data, name, "embedded"), found(data, name, "embedded", stand_in=True).notes[0]):
        assert str(data / near) in message
        assert all(wanted in message for wanted in absent(name, [])[:3])


def test_a_part_of_a_source_is_refused_and_named(data):
    put(data / "raw", *ATTACK[1:], "nvdcve-2.0-2024.json")
    message = refusal(data, "attack", "embedded")
    assert all(str(data / "raw" / name) in message for name in ATTACK[1:])
    assert ATTACK[0] in message
    message = refusal(data, "nvd")
    assert "nvdcve-2.0-2002.json" in message
    assert "nvdcve-2.0-2024.json" in message


def test_complete_sources_are_located_in_the_order_of_the_config_before_parts_elsewhere(data, tmp_path):
    cache = tmp_path / "cache" / "ghost_jax" / "data" / "raw"
    cache.mkdir(parents=True)
    put(cache, *ATTACK)
    put(data / "raw", ATTACK[0], "cwec_v4.14.xml")
    put(data / "corpus", "cti.jsonl")
    inputs = found(data, "cti", "embedded", "attack", "cwe")
    assert [each.source for each in inputs.files] == ["cti", "embedded", "attack", "attack", "attack", "cwe"]
    assert {each.path.parent for each in inputs.files if each.source == "attack"} == {cache}
    assert inputs.notes == ()
    assert [(each.source, each.path) for each in found(data, "embedded").files] == [("embedded", None)]


def test_the_embedded_pack_replaces_sources_and_a_part_is_used_with_a_note(data):
    inputs = found(data, "attack", "cwe", "embedded", stand_in=True)
    assert [each.source for each in inputs.files] == ["embedded"]
    (note,) = inputs.notes
    assert all(name in note for name in (*ATTACK, "cwec_v4.14.xml", str(data), "--sources=attack,cwe"))
    put(data / "raw", ATTACK[2])
    inputs = found(data, "attack", "embedded", stand_in=True)
    assert files_of(inputs) == [ATTACK[2]]
    assert all(name in inputs.notes[0] for name in ATTACK)


@pytest.mark.parametrize(
    ("config", "prepared"),
    [("pretrain_v05", False), ("pretrain_v05:mini", False), ("pretrain_v05:nano", True), ("chat_v5", False)],
)
def test_only_a_preset_named_nano_is_prepared_without_its_sources(data, config, prepared):
    name, colon, preset = config.partition(":")
    flags = [f"--config=configs/{name}.py{colon}{preset}", *set_all(TINY)]
    flags += set_all({f"base.{key}": value for key, value in TINY.items()}) if name.startswith("chat") else []
    read, _ = config_lib.parse(argparse.ArgumentParser(), flags)
    if prepared:
        assert "embedded" in prepare(read, str(data)).notes[0]
    else:
        with pytest.raises(UserError, match="nano"):
            prepare(read, str(data))
        assert not (data.parent / "cache" / "ghost_jax" / "stores").exists()


def test_a_file_of_no_source_is_named_once(data):
    strays = ("raw/enterprise-attack-19.1.json", "corpus/reports.jsonl", "cti.json")
    put(data, *strays)
    put(data, "README.md", "raw/readme", "raw/LICENSE.txt", "raw/LICENCE", "NOTICE", "raw/COPYING", ".hidden")
    put(data, "ctibench/cti-mcq.tsv", "raw/nvdcve-2.0-2003.meta", "raw/cwec_v4.14.xml.zip.partial", "kev.json.part")
    put(data, "raw/x.partial.etag", "raw/enterprise-attack-18.1.json.xz", "corpus/cve.jsonl.gz")
    (note,) = found(data, "embedded").notes
    assert sorted(re.findall(rf"{re.escape(str(data))}/([^,\s]+\w)", note)) == sorted(strays)
