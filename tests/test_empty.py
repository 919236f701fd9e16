"""Datasets, splits and held-out questions without a record are refused by name where they are needed."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from evals.answering.letters import make_probe
from evals.items.ctibench import HELD_OUT
from evals.tasks.mcq import check_data
from ghost_jax.config import load as config_lib
from ghost_jax.core.atomic_io import write_json
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import names_of
from ghost_jax.data.prepare import prepare
from ghost_jax.runs import run_dir
from tests.conftest import set_all

KEV_ENTRY = {"vendorProject": "Acme", "product": "Gate", "shortDescription": "Acme Gate lets anyone in by its door."}
KEV_ENTRY |= {"vulnerabilityName": "Acme Gate Bypass", "dateAdded": "2024-01-01", "cwes": ["CWE-287"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with texts without facts, and with vulnerabilities of one weakness."""
    folder = tmp_path_factory.mktemp("data")
    lines = [{"id": f"d{i}", "source": "mine", "text": f"Host {i * 7} sent {i * 13} packets."} for i in range(60)]
    (folder / "cti.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
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


CHAT = names_of("chat")
EMPTY_OF_TEXTS = [name for name in CHAT if name != "small_talk"]
EMPTY_OF_ONE_WEAKNESS = [name for name in EMPTY_OF_TEXTS if name not in ("qa", "matching_mcq")]


def prepared(data: Path, config: str, sources: str, mixed: Sequence[str], **options: object):
    """Prepares a config on some sources whose mixture is these datasets; returns both."""
    stages = ("data.", "base.data.") if config == "chat_v5" else ("data.",)
    values = {f"{stage}sources": sources for stage in stages}
    values |= {f"data.mixture.{name}": 0.0 for name in names_of("chat" if config == "chat_v5" else "pretrain")}
    values |= {f"data.mixture.{name}": 1.0 for name in mixed} | {f"data.{key}": each for key, each in options.items()}
    read, _ = config_lib.parse(argparse.ArgumentParser(), [f"--config=configs/{config}.py:nano", *set_all(values)])
    return read, prepare(read, str(data))


@pytest.mark.parametrize(
    ("config", "sources", "mixed", "options", "named"),
    [
        ("chat_v5", "cti", CHAT, {}, f"asks for {', '.join(EMPTY_OF_TEXTS)},"),
        ("chat_v5", "kev", CHAT, {}, f"asks for {', '.join(EMPTY_OF_ONE_WEAKNESS)},"),
        ("pretrain_v05", "cti,kev", ["pretrain", "facts"], {}, "asks for facts,"),
        ("chat_v5", "kev", ["qa"], {"qa_sources": "cwe"}, "data.qa_sources ('cwe',)"),
        ("chat_v5", "kev", ["qa"], {"qa_per_source": 0}, "data.qa_per_source"),
        ("chat_v5", "kev", ["qa"], {"qa_sources": "()"}, "data.qa_sources"),
        ("chat_v5", "kev", ["qa"], {"qa_sources": "nobody"}, "data.qa_sources"),
    ],
)
def test_empty_datasets_and_options_are_named(data, config, sources, mixed, options, named):
    with pytest.raises(UserError, match=re.escape(named)):
        prepared(data, config, sources, mixed, **options)


def test_a_run_without_held_out_questions_is_refused_before_it_is_trained(data, tmp_path):
    config, stores = prepared(data, "chat_v5", "kev", ["qa"])
    write_json(tmp_path / "base" / "data.json", {"trained_on": []})
    run = tmp_path / "chat"
    run_dir.record_data(config, run, tmp_path / "base", stores)
    empty = f"{HELD_OUT} is empty"
    with pytest.raises(UserError, match=empty):
        check_data(run, None)
    with pytest.raises(UserError, match=empty):
        make_probe(run, None, "classic", questions=4, context=128)
