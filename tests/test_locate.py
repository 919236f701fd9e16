"""Where a config's sources are looked for, what may stand in for them, and what the user is told of it."""

import argparse
import re

import pytest

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UserError
from ghost_jax.data import corpus, sources
from ghost_jax.data.corpus import Inputs, locate
from ghost_jax.data.downloads.published import PUBLISHED
from ghost_jax.data.prepare import prepare
from tests.conftest import TINY, set_all

ATTACK = ("enterprise-attack-15.1.json", "mobile-attack-15.1.json", "ics-attack-15.1.json")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder; nothing lies anywhere else, and nothing can be fetched."""
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


# ---- Nothing stands in ----


@pytest.mark.parametrize("name", [name for name, source in sources.SOURCES.items() if source.stems])
def test_a_source_that_is_missing_is_refused_with_its_files_the_folders_and_the_way_to_get_it(data, tmp_path, name):
    told = refusal(data, name, "embedded")
    assert sources.absent(name, [])[0] in told
    assert f"{data}, {tmp_path / 'cache' / 'ghost_jax' / 'data'}" in told
    if name in PUBLISHED:
        assert "GHOST_OFFLINE=1" in told
        assert f"ghost_jax.data.fetch --sources={name}" in told
    else:
        assert f"corpus/{name}.jsonl" in told
        assert "data.fetch" not in told


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("attack", "raw/enterprise-attack-19.1.json"),
        ("attack", "raw/enterprise-attack.json.xz"),
        ("attack", "raw/enterprise-attack-18.1.json"),  # of another source
        ("capec", "stix-capec.json"),
        ("cwe", "raw/cwec_v4.15.xml.zip"),
        ("nvd", "raw/nvdcve-1.1-2020.json.gz"),
        ("kev", "raw/known_exploited_vulnerabilities.csv"),
        ("cti", "corpus/cti.json"),
        ("cti", "corpus/CTI.jsonl"),
        ("cve", "corpus/cve.jsonl.bz2"),
    ],
)
@pytest.mark.parametrize("stand_in", [False, True])
def test_a_file_of_nearly_the_right_name_is_named(data, name, near, stand_in):
    put(data, near, "raw/holiday.jpg")
    told = found(data, name, "embedded", stand_in=True).notes[0] if stand_in else refusal(data, name, "embedded")
    assert f"Found there: {data / near}." in told
    assert set(sources.absent(name, [])[:3]) <= set(re.findall(r"[\w.-]+\w", told))


@pytest.mark.parametrize("here", [ATTACK[:1], ATTACK[2:], ATTACK[1:]])
def test_a_part_of_a_source_is_not_the_source(data, here):
    put(data / "raw", *here)
    told = refusal(data, "attack", "embedded")
    assert all(f"{data / 'raw' / name} (a part of attack)" in told for name in here)
    assert all(name in told for name in ATTACK)


def test_one_year_of_a_feed_is_not_the_feed(data):
    put(data / "raw", "nvdcve-2.0-2024.json")
    told = refusal(data, "nvd")
    assert "Missing: nvdcve-2.0-2002.json" in told
    assert "nvdcve-2.0-2024.json (a part of nvd)" in told


def test_a_feed_is_whole_with_every_year_that_is_published_and_may_have_more(data):
    names = sources.absent("nvd", [])
    assert len(names) == len(PUBLISHED["nvd"].files)
    put(data / "raw", *names, "nvdcve-2.0-2099.json")
    assert files_of(found(data, "nvd")) == [*names, "nvdcve-2.0-2099.json"]


def test_a_whole_source_is_taken_before_a_part_of_it(data, tmp_path):
    cache = tmp_path / "cache" / "ghost_jax" / "data" / "raw"
    cache.mkdir(parents=True)
    put(data / "raw", ATTACK[0])
    put(cache, *ATTACK)
    inputs = found(data, "attack")
    assert {each.path.parent for each in inputs.files} == {cache}
    assert inputs.notes == ()


def test_what_is_complete_is_located_in_the_order_of_the_config(data):
    put(data / "raw", *ATTACK, "cwec_v4.14.xml")
    put(data / "corpus", "cti.jsonl")
    inputs = found(data, "cti", "embedded", "attack", "cwe")
    assert [each.source for each in inputs.files] == ["cti", "embedded", "attack", "attack", "attack", "cwe"]
    assert inputs.notes == ()


def test_the_embedded_pack_alone_is_always_there(data):
    (only,) = found(data, "embedded").files
    assert (only.source, only.path) == ("embedded", None)


# ---- The embedded pack stands in ----


def test_the_embedded_pack_stands_in_and_the_note_says_for_what(data):
    inputs = found(data, "attack", "cwe", "embedded", stand_in=True)
    assert [each.source for each in inputs.files] == ["embedded"]
    (note,) = inputs.notes
    assert "No files of attack, cwe: the embedded pack stands in" in note
    assert all(name in note for name in (*ATTACK, "cwec_v4.14.xml", str(data), "data.fetch --sources=attack,cwe"))


def test_a_part_of_a_source_is_used_and_said(data):
    put(data / "raw", ATTACK[2])
    inputs = found(data, "attack", "embedded", stand_in=True)
    assert files_of(inputs) == [ATTACK[2]]
    (note,) = inputs.notes
    assert "Only a part of attack" in note
    assert all(name in note for name in ATTACK)


@pytest.mark.parametrize("names", [("attack",), ("cti", "kev")])
def test_nothing_stands_in_where_the_pack_is_not_named(data, names):
    told = refusal(data, *names, stand_in=True)
    assert f"No files of {', '.join(names)}" in told
    assert str(data) in told


@pytest.mark.parametrize(
    ("config", "goes_on"),
    [
        ("pretrain_v05", False),
        ("pretrain_v05:mini", False),
        ("pretrain_v05:nano", True),
        ("chat_v5", False),
        ("chat_v5:mini", False),
        ("chat_long:saved", False),
        ("chat_long:mini,saved", False),
        ("chat_long:nano,saved", True),
    ],
)
def test_only_a_preset_named_nano_goes_on_without_its_sources(data, config, goes_on):
    name, colon, preset = config.partition(":")
    flags = [f"--config=configs/{name}.py{colon}{preset}", *set_all(TINY)]
    flags += set_all({f"base.{key}": value for key, value in TINY.items()}) if name.startswith("chat") else []
    read, _ = config_lib.parse(argparse.ArgumentParser(), flags)
    if goes_on:
        assert "the embedded pack stands in" in prepare(read, str(data)).notes[0]
    else:
        with pytest.raises(UserError, match=r"Only a preset named nano"):
            prepare(read, str(data))
        assert not (data.parent / "cache" / "ghost_jax" / "stores").exists()


def test_a_full_size_run_without_its_sources_stops_and_leaves_no_run(ghost, tmp_path):
    command = ["ghost_jax.train", "--config=configs/pretrain_v05.py", f"--workdir={tmp_path / 'run'}"]
    told = ghost.refused(*command, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert "No files of attack, capec, cwe, cti, cve" in told
    assert not (tmp_path / "run" / "checkpoints").exists()


# ---- Files that no source has ----


def test_a_file_that_no_source_has_is_named_once(data):
    put(data, "raw/enterprise-attack-19.1.json", "corpus/reports.jsonl", "cti.json")
    (note,) = found(data, "embedded").notes
    for name in ("raw/enterprise-attack-19.1.json", "corpus/reports.jsonl", "cti.json"):
        assert note.count(str(data / name)) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "raw/readme", "raw/LICENSE.txt", "raw/LICENCE", "NOTICE", "raw/COPYING", ".hidden"),
        *("ctibench/cti-mcq.tsv", "raw/nvdcve-2.0-2003.meta", "raw/cwec_v4.14.xml.zip.partial", "raw/x.partial.etag"),
        *("raw/enterprise-attack-18.1.json.xz", "corpus/cve.jsonl.gz", "kev.json.part"),
    ],
)
def test_what_belongs_beside_data_is_not_named(data, name):
    put(data, name)
    assert found(data, "embedded").notes == ()


# ---- Documents ----


@pytest.mark.parametrize(
    ("source", "name", "text"),
    [
        ("cti", "cti.jsonl", "\n"),
        ("kev", "known_exploited_vulnerabilities.json", '{"vulnerabilities": []}'),
        ("exploitdb", "files_exploits.csv", "id,description,date_published,author,type,platform,port,codes\n"),
    ],
)
def test_a_file_without_a_document_is_refused(data, source, name, text):
    (data / name).write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(data / name))} holds no document"):
        corpus.corpus_store(found(data, source, "embedded"), print)
