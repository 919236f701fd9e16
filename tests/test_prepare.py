"""`python -m ghost_jax.data.prepare`: the same bytes each time, built once, whole or absent."""

import hashlib
import json
import resource
import time
from pathlib import Path

import pytest

from tests.conftest import TINY, set_all

PREPARE = ["ghost_jax.data.prepare", "--config=configs/chat_v5.py:nano"]
PREPARE += set_all(TINY) + set_all({f"base.{key}": value for key, value in TINY.items()})


def stores(cache: Path) -> Path:
    return cache / "ghost_jax" / "stores"


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifests(cache: Path) -> dict[str, dict]:
    """Returns the manifest of every store by its kind."""
    found = [json.loads((store / "manifest.json").read_text()) for store in stores(cache).iterdir()]
    return {manifest["kind"]: manifest for manifest in found}


@pytest.fixture(scope="module")
def prepared(ghost, tmp_path_factory):
    """Two caches prepared apart, the second after a killed preparation, and what preparing the first said."""
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    first = ghost.start(*PREPARE, env={"XDG_CACHE_HOME": str(killed)})
    while not list(stores(killed).glob("chat-*.partial-*/examples/*")) and first.poll() is None:
        time.sleep(0.002)
    first.kill()
    ghost.finish(first, check=False)
    left = list(stores(killed).iterdir())
    assert any(".partial-" in path.name for path in left), "it was killed in the middle of a store"
    assert all((path / "manifest.json").is_file() for path in left if ".partial-" not in path.name)
    said = ghost.together(
        {cache: lambda cache=cache: ghost(*PREPARE, env={"XDG_CACHE_HOME": str(cache)}) for cache in (whole, killed)}
    )
    return whole, killed, said[whole].stdout


def test_two_preparations_are_the_same_to_the_byte(prepared):
    whole, killed, _ = prepared
    assert manifests(whole).keys() == {"corpus", "pretrain", "chat"}
    there, here = bytes_of(stores(whole)), bytes_of(stores(killed))
    assert there.keys() == here.keys(), "nothing of the killed preparation is left"
    assert [name for name in there if there[name] != here[name]] == []


def test_what_is_prepared_is_found_again(ghost, prepared):
    whole, _, first = prepared
    times = {path: path.stat().st_mtime_ns for path in stores(whole).rglob("*")}
    started = time.monotonic()
    again = ghost(*PREPARE, env={"XDG_CACHE_HOME": str(whole)}).stdout
    assert time.monotonic() - started < 15
    assert {path: path.stat().st_mtime_ns for path in stores(whole).rglob("*")} == times
    built, told = first.splitlines(), again.splitlines()
    assert any("reading embedded" in line for line in built)
    assert told[:-1] == built[len(built) - len(told) : -1], "the same summary, and nothing read or built"
    assert float(told[-1].split()[-2]) < 3


def test_the_manifests_say_what_is_in_the_stores(prepared):
    found = manifests(prepared[0])
    assert found["corpus"]["licenses"] == {"embedded": "Apache-2.0"}
    assert found["corpus"]["documents"]["embedded"] > 500
    assert found["corpus"]["made_from"]["inputs"] == []  # the pack is part of the code, whose hash stands beside it
    assert found["chat"]["datasets"].keys() == {"qa", "mcq", "cot", "small_talk"}
    for manifest in found.values():
        assert len(manifest["code"]) == len(manifest["fingerprint"]) == 64
        for splits in manifest.get("datasets", {}).values():
            assert splits["train"]["records"] > 0
            assert 0 < splits["train"]["supervised"] <= splits["train"]["tokens"]


def test_real_publishers_files_are_prepared_with_hashes_and_licences(ghost, ghost_data, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "GHOST_DATA": str(ghost_data)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # processor time: other tests may be using the machine too
    said = ghost(*PREPARE[:2], env=environment).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert "stands in" not in said
    corpus = manifests(tmp_path)["corpus"]
    inputs = corpus["made_from"]["inputs"]
    assert {each["source"] for each in inputs} == {"attack", "capec", "cwe"}
    for each in inputs:
        content = (ghost_data / "raw" / each["file"]).read_bytes()
        assert (each["sha256"], each["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert {"attack", "capec", "cwe", "embedded"} <= corpus["licenses"].keys() == corpus["documents"].keys()
    assert all(corpus["licenses"].values())
