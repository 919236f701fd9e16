"""The name of a store depends on its inputs, the versions of the modules that make it, and those of the tools.

The tables below have the stores that each version decides. Names are computed here and nothing is built.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from evals.open_book import rescorer
from ghost_jax.data import corpus, datasets
from ghost_jax.data.builders import DATASETS, names_of
from ghost_jax.data.corpus import Input, Inputs
from ghost_jax.data.sources import SOURCES, embedded
from ghost_jax.data.storage import artifact_cache
from ghost_jax.text import tokenizer
from tests.conftest import ROOT

PARTS = {f"part of {name}" for name in (*SOURCES, "own_text")}
BASE, CHAT = set(names_of("pretrain")), {*names_of("chat"), "own_chats", "own_questions"}
ALONE = {"small_talk", "own_chats", "own_questions"}  # datasets of no corpus
OF_CORPUS = {"corpus", "vocabulary", "index", "reader", *BASE, *CHAT} - ALONE
EVERY = PARTS | OF_CORPUS | ALONE


def of(*names: str) -> set[str]:
    """Returns the stores of some sources: their parts and all that is made from a corpus."""
    return {f"part of {name}" for name in names} | OF_CORPUS


# module -> the stores whose name changes with its version
MODULES = {
    "ghost_jax.data.storage.text_cleaning": EVERY - {"own_questions"},
    "ghost_jax.data.storage.schema": EVERY - {"own_questions"},
    "ghost_jax.data.dedup": EVERY - ALONE,
    "ghost_jax.data.own.text": of("own_text"),
    "ghost_jax.data.own.chats": {"own_chats"},
    "ghost_jax.data.own.questions": {"own_questions"},
    "ghost_jax.data.sources.attack": of("attack", "attack18"),
    "ghost_jax.data.sources.capec": of("capec"),
    "ghost_jax.data.sources.cwe": of("cwe"),
    "ghost_jax.data.sources.nvd": of("nvd"),
    "ghost_jax.data.sources.kev": of("kev"),
    "ghost_jax.data.sources.exploitdb": of("exploitdb"),
    "ghost_jax.data.sources.jsonl": of("cti", "cve"),
    "ghost_jax.data.sources.embedded": of("embedded") | {"small_talk"},
    "ghost_jax.data.sources.stix": of("attack", "attack18", "capec"),
    "ghost_jax.data.sources.vulnerability": EVERY - {"part of embedded", "part of own_text"} - ALONE,
    "ghost_jax.data.storage.array_record": BASE | CHAT,
    "ghost_jax.data.builders.pretrain": {"vocabulary", "pretrain", "facts", "exposure"},
    "ghost_jax.data.builders.rewrite": {"facts", "exposure"},
    "ghost_jax.data.builders.exposure": {"exposure"},
    "ghost_jax.data.builders.qa": {"qa"},
    "ghost_jax.data.builders.mcq": {"mcq", "cot", "raft", "rank", "own_questions"},
    "ghost_jax.data.builders.cot": {"cot"},
    "ghost_jax.data.builders.small_talk": {"small_talk"},
    "ghost_jax.data.builders.fact_mcq": {"fact_mcq", "fact_rank", "read", "exposure"},
    "ghost_jax.data.wordings.question_forms": {"fact_mcq", "fact_rank", "read", "reader", "exposure"},
    "ghost_jax.data.builders.raft": {"raft", "read"},
    "ghost_jax.data.builders.rank": {"rank", "fact_rank", "read"},
    "ghost_jax.text.tokenizer": {"vocabulary"} | BASE | CHAT,
    "ghost_jax.text.chat_format": CHAT,
    "ghost_jax.text.mcq_format": CHAT - {"qa", "small_talk", "own_chats"},
    "ghost_jax.data.retrieval.bm25": {"index", "raft", "read", "reader"},
    "evals.open_book.lexical": {"reader"},
    "evals.open_book.rescorer": {"reader"},
}
# distribution -> the stores whose name changes with its version
TOOLS = {
    "rensa": EVERY - ALONE,
    "tokenizers": {"vocabulary"} | BASE | CHAT,
    "tensorflow-datasets": BASE | CHAT,
    "array_record": BASE | CHAT,
    "bm25s": {"index", "raft", "read", "reader"},
    "PyStemmer": {"index", "raft", "read", "reader"},
    "scipy": {"reader"},
    **{name: set() for name in ("numpy", "ijson", "defusedxml", "jax", "grain", "rich", "requests")},
}


class _Named(Exception):
    """Ends a function that would read the store."""


@functools.cache
def vocabulary() -> tokenizer.Tokenizer:
    return tokenizer.train(["one two three"], 300)


def names(folder: Path, edited: str = "") -> dict[str, str]:
    """Returns the name of every kind of store of one file of each source in `folder`, one of them edited."""
    found = {}

    def placed(kind: str, *made: object) -> Path:
        found[kind] = f"{kind}-{artifact_cache.fingerprint(artifact_cache.identity_of(kind, *made[:2]))[:16]}"
        if kind == "reader":
            raise _Named
        return folder / found[kind]

    inputs = []
    for name, source in SOURCES.items():
        path = folder / f"{name}.txt" if source.stems else None
        if path:
            path.write_text("edited" if name == edited else name)
        inputs.append(Input(name, path))
    (folder / "own.md").write_text("edited" if edited == "own_text" else "own")
    for name in ("own_chats", "own_questions"):
        (folder / name).write_text("edited" if edited == name else "own")
    inputs.append(Input("own_text", folder, (folder / "own.md",)))
    data = {
        "seed": 0,
        "seq_len": 96,
        "layout": "classic",
        "qa_sources": ("kev",),
        "qa_per_source": 9,
        "cot": {},
        "question_group": "",
    }
    data |= {group: {f"own_{group}": str(folder / f"own_{group}")} for group in ("chats", "questions")}
    config = ConfigDict({"model": {"vocab_size": 300}, "data": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact_cache, "build", placed)
        for each in inputs:
            corpus.part_stores([each], print)
            found[f"part of {each.source}"] = found.pop("part")
        documents = corpus.corpus_store(Inputs(tuple(inputs), ()), print)
        index = corpus.index_store(documents, ("attack",), print)
        datasets.vocabulary_store(config, documents, print)
        for name in (*DATASETS, "own_chats", "own_questions"):
            datasets.dataset_store(name, config, documents, vocabulary(), print)
        with contextlib.suppress(_Named):
            rescorer.generated_weights(documents, [index], print)
    return found


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> dict[str, str]:
    return names(tmp_path_factory.mktemp("before"))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys() == EVERY
    return {kind for kind in before if before[kind] != after[kind]}


@pytest.mark.parametrize("name", MODULES)
def test_a_version_decides_the_names_of_the_stores_that_depend_on_it(before, tmp_path, monkeypatch, name):
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert changed(before, names(tmp_path)) == MODULES[name]


@pytest.mark.parametrize("tool", TOOLS)
def test_another_version_of_a_tool_gives_other_stores_where_its_output_is_held(before, tmp_path, monkeypatch, tool):
    here = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == tool else here(name))
    assert changed(before, names(tmp_path)) == TOOLS[tool]


@pytest.mark.parametrize(
    "source", [*(name for name in SOURCES if SOURCES[name].stems), "own_text", "own_chats", "own_questions"]
)
def test_another_content_of_a_file_gives_other_stores(before, tmp_path, source):
    expected = {source} if source in ALONE else of(source)
    assert changed(before, names(tmp_path, edited=source)) == expected


def test_an_edit_of_the_pack_gives_other_stores(before, tmp_path, monkeypatch):
    pack = shutil.copytree(ROOT / "ghost_jax" / "data" / "sources" / "pack", tmp_path / "pack")
    (pack / "attack.tsv").write_text((pack / "attack.tsv").read_text() + "\n")
    monkeypatch.setattr(embedded, "_PACK", pack)
    assert changed(before, names(tmp_path)) == of("embedded") | {"small_talk"}


def test_every_module_with_a_version_and_every_tool_is_in_the_tables():
    of_results = {"evals.overlap.contamination", "ghost_jax.data.mixture"}  # of results and batches, not of stores
    paths = [path for package in ("ghost_jax", "evals") for path in (ROOT / package).rglob("*.py")]
    versioned = [path.relative_to(ROOT) for path in paths if "\nVERSION = " in path.read_text()]
    modules = {".".join(path.with_suffix("").parts) for path in versioned} - of_results
    assert modules == set(MODULES)
    assert all(isinstance(importlib.import_module(name).VERSION, int) for name in modules)
    tools = {tool for name in modules for tool in getattr(importlib.import_module(name), "TOOLS", ())}
    assert tools == {tool for tool, stores in TOOLS.items() if stores}
