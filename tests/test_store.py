"""artifact_cache.py: a store is whole or absent, and found again while nothing it is made from changed."""

import importlib.metadata
import subprocess
import sys
import types

import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import artifact_cache


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir()


def write_nothing(folder):
    (folder / "data.txt").write_text("content")
    return {"rows": 3}


def build(made_from: dict, kind: str = "corpus", write=write_nothing):
    return artifact_cache.build(kind, (), made_from, write)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- Whole or absent ----


def test_a_store_is_written_once_and_found_again():
    calls = []

    def write(folder):
        calls.append(folder)
        return write_nothing(folder)

    first = build({"inputs": [1]}, write=write)
    assert build({"inputs": [1]}, write=write) == first
    assert len(calls) == 1
    manifest = artifact_cache.manifest(first)
    assert (manifest.kind, manifest.made_from, manifest.details["rows"]) == ("corpus", {"inputs": [1]}, 3)
    assert first.name == f"corpus-{manifest.fingerprint[:16]}"
    assert names(first) == ["data.txt", "manifest.json"]
    assert names(first.parent) == [".locks", first.name]


@pytest.mark.parametrize(
    ("kind", "made_from"), [("corpus", {"inputs": [2]}), ("chat", {"inputs": [1]}), ("corpus", {})]
)
def test_other_inputs_give_another_store(kind, made_from):
    assert build(made_from, kind) != build({"inputs": [1]})


@pytest.mark.parametrize("fault", [ValueError("half way"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_nothing(cache, fault):
    def write(folder):
        write_nothing(folder)
        raise fault

    with pytest.raises(type(fault)):
        build({}, write=write)
    assert names(cache / "stores") == [".locks"]
    assert build({}).is_dir()


def test_what_a_killed_process_left_is_removed():
    built = build({})
    built.rename(built.with_name(f"{built.name}.partial"))
    assert build({}) == built
    assert names(built.parent) == [".locks", built.name]


WAITER = """
import sys, time
from pathlib import Path
from ghost_jax.data.storage import artifact_cache

def write(folder):
    with open(sys.argv[1], "a") as file:
        file.write("built\\n")
    time.sleep(0.5)
    return {}

print(artifact_cache.build("corpus", (), {}, write).name)
"""


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path, cache):
    command = [sys.executable, "-c", WAITER, str(tmp_path / "log")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(found) == 1
    assert (cache / "stores" / found.pop() / "manifest.json").is_file()
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_store_is_found_by_the_name_that_records_give():
    built = build({})
    assert artifact_cache.find(built.name) == built
    assert artifact_cache.find("corpus-0123456789abcdef") is None


@pytest.mark.parametrize("content", [None, "", '{"rows": ', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"{tmp_path} is not a complete store"):
        artifact_cache.manifest(tmp_path)


def test_fingerprints_see_content_and_not_the_order_of_keys():
    assert artifact_cache.fingerprint({"a": 1, "b": [2]}) == artifact_cache.fingerprint({"b": [2], "a": 1})
    assert artifact_cache.fingerprint({"a": [1, 2]}) != artifact_cache.fingerprint({"a": [2, 1]})


def test_an_identity_holds_versions_and_the_tools_that_they_name():
    module = types.ModuleType("ghost_jax.data.builders.qa")
    module.VERSION, module.TOOLS = 3, ("numpy",)
    built = artifact_cache.build("qa", (module,), {"seed": 0}, write_nothing)
    identity = {
        "kind": "qa",
        "versions": {"qa": 3},
        "tools": {"numpy": importlib.metadata.version("numpy")},
        "made_from": {"seed": 0},
    }
    manifest = artifact_cache.manifest(built)
    assert {key: manifest.to_json()[key] for key in identity} == identity
    assert manifest.fingerprint == artifact_cache.fingerprint(identity)
    module.VERSION = 4
    assert artifact_cache.build("qa", (module,), {"seed": 0}, write_nothing) != built
