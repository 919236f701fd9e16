"""The name of a store depends on its inputs, the versions of what makes it, and those of the tools; none is built."""

import importlib
import importlib.metadata
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ghost_jax.data import corpus, prepare
from ghost_jax.data.builders import DATASETS
from ghost_jax.data.corpus import Input
from ghost_jax.data.sources import SOURCES, embedded
from ghost_jax.data.storage import artifact_cache
from tests.conftest import ROOT

OWN = {"own_chats", "own_questions"}  # datasets of no corpus, of data.chats and data.questions
OF_CORPUS = {"corpus", "vocabulary", "index", *DATASETS}
EVERY = {f"part of {name}" for name in (*SOURCES, "own_text")} | OF_CORPUS | OWN


def of(*names: str) -> set[str]:
    """Returns the stores of some sources: their parts and all that is made from a corpus."""
    return {f"part of {name}" for name in names} | OF_CORPUS


# module of ghost_jax.data -> the stores whose name changes with its version
MODULES = {"storage.schema": EVERY, "own.text": of("own_text")} | {f"own.{n[4:]}": {n} for n in sorted(OWN)}
for row in SOURCES.values():
    MODULES[f"sources.{row.reader}"] = of(*(name for name in SOURCES if SOURCES[name].reader == row.reader))
for name, row in DATASETS.items():
    MODULES.setdefault(f"builders.{(row.builder or name).partition('.')[0]}", set()).add(name)
MODULES["builders.pretrain"].add("vocabulary")  # of the same texts
VOCABULARY = types.SimpleNamespace(sha256="0" * 64)


def names(folder: Path, edited: str = "") -> dict[str, str]:
    """Returns the name of every kind of store of one file of each source in `folder`, one of them edited."""
    found = {}

    def placed(kind: str, versions: dict, made_from: dict, _) -> Path:
        found[kind] = artifact_cache.fingerprint(artifact_cache.identity_of(kind, versions, made_from))
        return folder / found[kind]

    def file(name: str) -> Path:
        path = folder / name / "a.md"
        path.parent.mkdir()
        path.write_text("edited" if name == edited else name)
        return path

    pack = file("embedded").parent
    inputs = [Input(name, file(name) if source.stems else None) for name, source in SOURCES.items()]
    inputs.append(Input("own_text", folder / "own_text", (file("own_text"),)))
    data = {"seed": 0, "seq_len": 96, "layout": "classic", "qa_sources": ("kev",), "qa_per_source": 9, "cot": {}}
    data |= {name[4:]: {name: str(file(name))} for name in OWN}
    config = ConfigDict({"model": {"vocab_size": 300}, "data": data | {"question_group": ""}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact_cache, "build", placed)
        patch.setattr(embedded, "_PACK", pack)
        for each in inputs:
            corpus.part_stores([each], print)
            found[f"part of {each.source}"] = found.pop("part")
        documents = corpus.corpus_store(inputs, print)
        corpus.index_store(documents, ("attack",), print)
        prepare.vocabulary_store(config, documents)
        for name in (*DATASETS, *OWN):
            prepare.dataset_store(name, config, documents, VOCABULARY)
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> dict[str, str]:
    return names(tmp_path_factory.mktemp("before"))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys() == EVERY
    return {kind for kind in before if before[kind] != after[kind]}


@pytest.mark.parametrize("name", MODULES)
def test_a_version_decides_the_names_of_the_stores_that_depend_on_it(before, tmp_path, monkeypatch, name):
    module = importlib.import_module(f"ghost_jax.data.{name}")
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert changed(before, names(tmp_path)) == MODULES[name]


@pytest.mark.parametrize("tool", [*artifact_cache.TOOLS, "numpy"])
def test_another_version_of_a_tool_gives_other_stores(before, tmp_path, monkeypatch, tool):
    here = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == tool else here(name))
    assert changed(before, names(tmp_path)) == (EVERY if tool in artifact_cache.TOOLS else set())


@pytest.mark.parametrize("source", [*SOURCES, "own_text", *sorted(OWN)])
def test_another_content_of_a_file_gives_other_stores(before, tmp_path, source):
    assert changed(before, names(tmp_path, edited=source)) == ({source} if source in OWN else of(source))


def test_every_version_decides_a_store():
    paths = (ROOT / "ghost_jax" / "data").rglob("*.py")
    versioned = {".".join(path.parts[-2:]).removesuffix(".py") for path in paths if "\nVERSION = " in path.read_text()}
    assert versioned - {"data.mixture"} == set(MODULES)  # that one is of the order of batches
