"""artifact_cache.py: a store is complete or absent, and found again while nothing it is made from changed."""

import subprocess
import sys
from pathlib import Path

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import artifact_cache, schema
from ghost_jax.data.storage.artifact_cache import SplitCounts


@pytest.fixture(autouse=True)
def stores(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir() / "stores"


def write_rows(folder):
    (folder / "data.txt").write_text("content")
    return {"rows": 3}


def build(made_from: dict, kind: str = "corpus", write=write_rows, versions=None):
    return artifact_cache.build(kind, versions or {}, made_from, write)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_store_is_written_once_and_found_again(stores):
    built = build({"inputs": [1]})
    assert build({"inputs": [1]}, write=None) == built
    assert artifact_cache.find(built.name) == built
    assert artifact_cache.find("corpus-0123456789abcdef") is None
    assert names(built) == ["data.txt", "manifest.json"]
    assert names(stores) == [".locks", built.name]
    others = [build({"inputs": [2]}), build({"inputs": [1]}, "chat"), build({})]
    assert built not in others


def test_a_manifest_is_read_as_it_was_written():
    counts = SplitCounts(2, 1, 7, 3, {"A": 1}, {3: 1, 4: 1}, "0" * 64)
    content = {"datasets": {"mcq": {"train": counts}}, "documents": {"b": 1}, "teacher": {"label": "x", "none": None}}
    manifest = artifact_cache.manifest(build({"seed": 0}, "qa", lambda folder: content, versions={"qa": 3}))
    assert (manifest.kind, manifest.made_from, manifest.versions) == (
        "qa",
        {"seed": 0},
        {"shared": schema.VERSION, "qa": 3},
    )
    assert (manifest.datasets, manifest.documents) == (content["datasets"], {"b": 1})
    assert manifest.model_extra == {"teacher": content["teacher"]}
    assert manifest.licenses is manifest.duplicates_dropped is None


@pytest.mark.parametrize("fault", [ValueError("half way"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(stores, fault):
    def write(folder):
        write_rows(folder)
        raise fault

    with pytest.raises(type(fault)):
        build({}, write=write)
    assert names(stores) == [".locks"]
    assert build({}).is_dir()


def test_a_partial_store_of_a_killed_process_is_removed(stores):
    built = build({})
    built.rename(built.with_name(f"{built.name}.partial"))
    assert build({}) == built
    assert names(stores) == [".locks", built.name]


@pytest.mark.parametrize("name", ["data.txt", "manifest.json"])
def test_a_damaged_store_is_rebuilt(name):
    built = build({})
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    (built / name).write_text(before[name].decode().replace("content", "contend").replace('"rows": 3', '"rows": 4'))
    artifact_cache._verified.cache_clear()  # as in another process
    assert artifact_cache.find(built.name) is None
    assert build({}) == built
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before


BUILDER = """
import sys, time
from ghost_jax.data.storage import artifact_cache

def write(folder):
    print("built", file=sys.stderr)
    time.sleep(0.5)
    return {}

print(artifact_cache.build("corpus", {}, {}, write))
"""


def test_of_several_processes_one_builds_and_the_others_wait(stores):
    command = [sys.executable, "-c", BUILDER]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=60) for process in started]
    (place,) = {out.split()[-1] for out, _ in printed}
    assert artifact_cache.find(Path(place).name) == Path(place)
    assert sum(err.count("built") for _, err in printed) == 1


@pytest.mark.parametrize("content", ["", "\x00", "[]", '{"datasets": {"mcq": {"train": {}}}}'])
def test_an_absent_or_invalid_manifest_is_named(tmp_path, content):
    if content:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        artifact_cache.manifest(tmp_path)
