"""artifact_cache.py: a store is complete or absent, and found again while nothing it is made from changed."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import artifact_cache, schema
from ghost_jax.data.storage.artifact_cache import Manifest, SplitCounts


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
    built = build({"seed": 0}, write=lambda folder: content)
    manifest = artifact_cache.manifest(built)
    assert manifest.datasets == content["datasets"]
    assert (manifest.documents, manifest.model_extra) == ({"b": 1}, {"teacher": content["teacher"]})
    assert manifest.licenses is manifest.duplicates_dropped is None
    text = (built / "manifest.json").read_text()
    assert text == json.dumps(manifest.to_json(), indent=1, sort_keys=True)
    assert json.loads(text)["datasets"]["mcq"]["train"]["lengths"] == {"3": 1, "4": 1}


def test_an_identity_holds_versions_and_tools():
    built = build({"seed": 0}, "qa", versions={"qa": 3})
    tools = {name: importlib.metadata.version(name) for name in artifact_cache.TOOLS}
    versions = {"shared": schema.VERSION, "qa": 3}
    identity = {"kind": "qa", "versions": versions, "tools": tools, "made_from": {"seed": 0}}
    manifest = artifact_cache.manifest(built)
    assert identity.items() <= manifest.to_json().items()
    assert manifest.fingerprint == artifact_cache.fingerprint(dict(reversed(identity.items())))
    assert built.name == f"qa-{manifest.fingerprint[:16]}"
    assert build({"seed": 0}, "qa", versions={"qa": 4}) != built


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
    (built / name).write_text(
        (built / name).read_text().replace("content", "contend").replace('"rows": 3', '"rows": 4')
    )
    artifact_cache._verified.cache_clear()  # as in another process
    assert artifact_cache.find(built.name) is None
    assert build({}) == built
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before


BUILDER = """
import sys, time
from ghost_jax.data.storage import artifact_cache, schema

def write(folder):
    with open(sys.argv[1], "a") as file:
        file.write("built\\n")
    time.sleep(0.5)
    return {}

print(artifact_cache.build("corpus", {}, {}, write).name)
"""


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path, stores):
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "log")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (name,) = {process.communicate(timeout=60)[0].split()[-1] for process in processes}
    assert (stores / name / "manifest.json").is_file()
    assert (tmp_path / "log").read_text() == "built\n"


@pytest.mark.parametrize("content", [None, "", '{"rows": ', "\x00", "[]", '{"datasets": {"mcq": {"train": {}}}}'])
def test_an_invalid_manifest_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        artifact_cache.manifest(tmp_path)
    assert Manifest().documents is None
