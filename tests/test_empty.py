"""Datasets, splits and held-out questions without a record: refused by name where they are needed, else left alone."""

import argparse
import json
import re
from pathlib import Path

import pytest

from evals.answering.online_probe import make_probe
from evals.items.locate import HELD_OUT
from evals.tasks.mcq import check_data
from ghost_jax.config import load as config_lib
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data import conversations, mixture, windows
from ghost_jax.data.prepare import Prepared, mix_of, prepare
from ghost_jax.data.storage import artifact_cache
from ghost_jax.runs import plan, run_dir
from tests.conftest import TINY, set_all, tiny_chat

KEV_ENTRY = {"vendorProject": "Acme", "product": "Gate", "shortDescription": "Acme Gate lets anyone in by its door."}
KEV_ENTRY |= {"vulnerabilityName": "Acme Gate Bypass", "dateAdded": "2024-01-01", "cwes": ["CWE-287"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with texts of no known source, vulnerabilities of one weakness, and a text of one line."""
    folder = tmp_path_factory.mktemp("data")
    lines = [{"id": f"d{i}", "source": "mine", "text": f"Host {i * 7} sent {i * 13} packets."} for i in range(60)]
    (folder / "cti.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "cve.jsonl").write_text(json.dumps(lines[0]) + "\n")
    entries = [KEV_ENTRY | {"cveID": f"CVE-2024-{1000 + i}"} for i in range(20)]
    (folder / "known_exploited_vulnerabilities.json").write_text(json.dumps({"vulnerabilities": entries}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GHOST_OFFLINE", "1")
        patch.delenv("GHOST_DATA", raising=False)
        yield


def config_of(name: str, sources: str, mixed: tuple[str, ...], **data: object):
    """Returns a tiny config on some sources whose mixture is these datasets, each once."""
    stages = ["", "base."] if name.startswith("chat") else [""]
    keys = TINY | {"data.sources": sources}
    flags = [flag for stage in stages for flag in set_all({f"{stage}{key}": value for key, value in keys.items()})]
    table = conversations.DATASETS if name.startswith("chat") else windows.DATASETS
    flags += set_all({f"data.mixture.{dataset}": float(dataset in mixed) for dataset in table})
    flags += set_all({f"data.{key}": value for key, value in data.items()})
    return config_lib.parse(argparse.ArgumentParser(), [f"--config=configs/{name}.py:nano", *flags])[0]


def told_of(data: Path, *asked: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        prepare(config_of(*asked, **options), str(data))
    return str(caught.value)


def prepared_of(data: Path, *asked: object) -> tuple[Prepared, mixture.Mix]:
    config = config_of(*asked)
    prepared = prepare(config, str(data))
    return prepared, mix_of(config, prepared)


# ---- Datasets ----


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        *(("cti", name) for name in conversations.DATASETS if name != "small_talk"),
        *(("kev", name) for name in conversations.DATASETS if name not in ("small_talk", "qa")),
    ],
)
def test_a_dataset_that_is_mixed_in_and_has_no_training_record_is_refused(data, sources, name):
    told = told_of(data, "chat_v5", sources, ("small_talk", name))
    assert re.search(rf"asks for {name},", told)
    assert f"--config.data.mixture.{name}=0" in told
    assert f"sources {sources}, with documents of {'mine' if sources == 'cti' else 'kev'}" in told


def test_facts_that_no_reference_page_states_are_refused(data):
    assert "asks for facts," in told_of(data, "pretrain_v05", "cti,kev", ("pretrain", "facts"))


def test_sources_of_questions_that_no_document_has_are_named(data):
    told = told_of(data, "chat_v5", "kev", ("qa",), qa_sources="cwe")
    assert "asks for qa," in told
    assert "data.qa_sources ('cwe',)" in told


@pytest.mark.parametrize(("key", "value"), [("qa_per_source", 0), ("qa_sources", "()"), ("qa_sources", "nobody")])
def test_options_that_ask_nothing_are_named(data, key, value):
    with pytest.raises(UsageError, match=rf"data\.{key}"):
        prepare(config_of("chat_v5", "kev", ("qa",), **{key: value}), str(data))


def test_all_empty_datasets_are_named_at_once(data):
    told = told_of(data, "chat_v5", "cti", ("qa", "mcq", "cot", "small_talk"))
    assert "asks for qa, mcq, cot," in told
    assert "small_talk" not in told


def test_a_dataset_that_comes_in_later_is_refused_at_the_start(data):
    config = config_of("chat_v5", "kev", ("qa",))
    with config.unlocked():
        config.data.mixture_schedule = {"4": {"fact_mcq": 1.0}}
    with pytest.raises(UserError, match="asks for fact_mcq,"):
        prepare(config, str(data))


@pytest.mark.parametrize(("sources", "mixed"), [("kev", ("qa",)), ("cti", ("small_talk",))])
def test_a_dataset_that_is_not_mixed_in_may_be_empty(data, sources, mixed):
    prepared, mix = prepared_of(data, "chat_v5", sources, mixed)
    assert artifact_cache.manifest(prepared.stores["mcq"]).datasets["mcq"] == {}
    assert mixture.validation_batches(mix, "mcq", batch_size=8, records=8) == []
    assert next(mixture.read_from(mixture.train_batches(mix), 0))["weights"].sum() > 0


def test_a_mixture_of_nothing_is_refused(data):
    with pytest.raises(UserError, match=r"config\.data\.mixture"):
        config_of("chat_v5", "kev", ())


def test_a_chat_run_is_refused_before_its_base_is_trained(ghost, tmp_path):
    told = ghost.refused(*tiny_chat(tmp_path / "chat", "--config.data.qa_sources=cwe"))
    assert "asks for qa," in told
    assert not list(tmp_path.rglob("checkpoints"))


# ---- Validation ----


def test_a_corpus_shorter_than_a_window_is_trained_on_without_validation_and_that_is_said(data, capsys):
    config = config_of("pretrain_v05", "cve", ("pretrain",))
    prepared = prepare(config, str(data))
    assert artifact_cache.manifest(prepared.stores["pretrain"]).datasets["pretrain"].keys() == {"train"}
    plan.show(config, prepared, make_console())
    assert "no dataset of the mixture has a validation record" in capsys.readouterr().out


def test_nothing_is_said_of_validation_where_there_is_some(data, capsys):
    config = config_of("pretrain_v05", "cti", ("pretrain",))
    plan.show(config, prepare(config, str(data)), make_console())
    assert "validation record" not in capsys.readouterr().out


# ---- Held-out questions ----


@pytest.fixture
def unasked(data, tmp_path) -> Path:
    """The record of a run whose data hold no question out."""
    config = config_of("chat_v5", "kev", ("qa",))
    write_json(tmp_path / "base" / "data.json", {"trained_on": []})
    run_dir.record_data(config, tmp_path / "chat", tmp_path / "base", prepare(config, str(data)))
    assert (tmp_path / "chat" / HELD_OUT).read_text() == ""
    return tmp_path / "chat"


@pytest.mark.parametrize(
    "ask", [lambda run: check_data(run, None), lambda run: make_probe(run, None, "classic", questions=4, context=128)]
)
def test_a_run_without_held_out_questions_is_told_before_it_is_trained(unasked, ask):
    with pytest.raises(UserError, match=rf"{re.escape(str(unasked / HELD_OUT))} is empty"):
        ask(unasked)
