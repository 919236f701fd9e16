"""`python -m ghost_jax.data.prepare`: the same bytes each time, built once; `ghost_jax.data.show`: what is learnt."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ghost_jax.config import load as config_lib
from ghost_jax.core.console import make_console
from ghost_jax.data import mixture
from ghost_jax.data.prepare import prepare
from ghost_jax.data.show import show
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage.artifact_cache import fingerprint
from tests.conftest import ROOT, TINY, both_stages, set_all
from tests.test_ctibench import write_items

CHAT = ["--config=configs/chat_v5.py:nano", *both_stages(TINY)]
MORE = ("fact_mcq", "raft", "rank", "read")  # datasets that the recipe does not mix in
PREPARE = ["ghost_jax.data.prepare", *CHAT]
PREPARE += set_all({f"data.mixture.{name}": 1.0 for name in MORE} | {"base.data.mixture.facts": 1.0})
CONTENTS = Path(__file__).with_name("store_contents.json")  # name of a store -> the hash of its files


def manifests(cache: Path) -> dict[str, dict]:
    paths = (cache / "ghost_jax" / "stores").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def assert_content_is_recorded(cache: Path) -> None:
    """Fails where a store has another content than under the same name before; with GHOST_RECORD=1, records it."""
    found = {name: fingerprint(manifest["files"]) for name, manifest in manifests(cache).items()}
    recorded = json.loads(CONTENTS.read_text())
    if os.environ.get("GHOST_RECORD"):
        recorded |= found
        CONTENTS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    changed = [name for name in found if recorded.get(name, found[name]) != found[name]]
    assert not changed, "the content changed and the name did not: raise the VERSION of the module that makes it"
    new = found.keys() - recorded.keys()
    assert not new, f"stores of these names are not in {CONTENTS.name}: record them with GHOST_RECORD=1"


def test_stores_are_complete_have_the_content_recorded_for_their_names_and_are_found_again(ghost, tmp_path):
    ghost.here(*PREPARE, env={"XDG_CACHE_HOME": str(tmp_path)})
    found = {manifest["kind"]: manifest for manifest in manifests(tmp_path).values()}
    of_base = {"part", "corpus", "vocabulary", "pretrain", "facts", "index"}
    assert found.keys() == of_base | {"qa", "mcq", "cot", "small_talk"} | set(MORE)
    assert not list(tmp_path.rglob("*.partial"))
    assert_content_is_recorded(tmp_path)
    assert found["corpus"]["licenses"] == {"embedded": "Apache-2.0"}
    assert found["corpus"]["duplicates_dropped"] == {}
    assert found["corpus"]["made_from"]["inputs"] == [{"source": "embedded", "sha256": embedded.sha256()}]
    for manifest in found.values():
        assert manifest["tools"] == {name: importlib.metadata.version(name) for name in manifest["tools"]}

    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = ghost.here(*PREPARE, env={"XDG_CACHE_HOME": str(tmp_path)}).stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    assert "building" not in said


def test_what_a_config_says_of_its_data_reaches_them(ghost, tmp_path, monkeypatch):
    for key, value in ghost.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("GHOST_DATA", raising=False)
    config = config_lib.load(f"{ROOT}/configs/chat_v5.py:nano")
    asked = {"cot", "fact_mcq", "mcq", "quiz", "raft"}
    quiz = [{"question": f"{n}?", "options": {"A": f"is {n}", "B": f"not {n}"}, "answer": "A"} for n in range(20)]
    config_lib.override_all(config, [("data.questions.quiz", write_items(tmp_path / "quiz.jsonl", quiz))])
    values = {"seed": 5, "loss_norm": "record_mean", "data.packing": False, "data.truncation": "drop"}
    values |= {"data.layout": "options_only"} | {f"data.mixture.{name}": 1.0 for name in asked}
    config.update_from_flattened_dict(TINY | {f"base.{key}": value for key, value in TINY.items()} | values)
    with config.unlocked():
        config.data.mixture_schedule = {"3": {"qa": 0.0}}
    mix = prepare(config, None).mix
    assert (mix.seed, mix.loss_norm, mix.packing, mix.truncation) == (5, "record_mean", False, "drop")
    assert {start: multipliers["qa"] for start, multipliers in mix.phases.items()} == {0: 1.0, 3: 0.0}
    shown = [(name, example["tokens"]) for name, example in mixture.first_examples(mix, 5000)]
    decode = prepare(config, None).tokenizer.decode
    texts = {name: [decode(tokens) for each, tokens in shown if each == name] for name in asked}
    for name, of_dataset in texts.items():  # of the control that is trained without questions
        assert of_dataset, name
        assert all("Question:\n" in text for text in of_dataset), name


@pytest.mark.slow
def test_real_publishers_files_are_prepared_with_hashes_and_licences(ghost, ghost_data, tmp_path):
    said = ghost(*PREPARE[:2], env={"XDG_CACHE_HOME": str(tmp_path), "GHOST_DATA": str(ghost_data)}).stdout
    assert "stands in" not in said
    assert_content_is_recorded(tmp_path)
    (corpus,) = (manifest for manifest in manifests(tmp_path).values() if manifest["kind"] == "corpus")
    *inputs, pack = corpus["made_from"]["inputs"]
    assert {each["source"] for each in inputs} == {"attack", "capec", "cwe"}
    assert pack == {"source": "embedded", "sha256": embedded.sha256()}
    for each in inputs:
        content = (ghost_data / "raw" / each["file"]).read_bytes()
        assert (each["sha256"], each["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert {"attack", "capec", "cwe", "embedded"} <= corpus["licenses"].keys() == corpus["documents"].keys()
    assert all(corpus["licenses"].values())


def test_the_first_records_are_printed_with_supervised_tokens_in_brackets(ghost):
    printed = ghost.here("ghost_jax.data.show", *CHAT, "-n", "4").stdout
    shown = printed[printed.index("tokens, ") :]
    assert shown.count("⟦") == shown.count("⟧") == 4
    for supervised in (part.split("⟧")[0] for part in shown.split("⟦")[1:]):
        assert supervised.endswith("<|ghost_end|>")
        assert "ghost_user" not in supervised
    assert "<|ghost_assistant|>⟦" in shown
    assert "-n: 0" in ghost.refused_here("ghost_jax.data.show", *CHAT, "-n", "0", code=2)


def test_an_id_is_shown_and_is_no_markup_and_no_text_controls_the_terminal(capsys):
    example = {"id": b"a[/b]c\x1b", "source": b"x", "letter": b"", "tokens": [1], "mask": np.zeros(1, bool)}
    show(example, "mine", SimpleNamespace(decode=lambda _: "\x1b]0;x\x07"), 8, make_console())
    shown = capsys.readouterr().out
    assert r"a[/b]c\x1b" in shown
    assert r"\x1b]0;x\x07" in shown
