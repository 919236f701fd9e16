"""evals/overlap/store_text.py: what is in a store comes back as text, whole documents out of windows cut anywhere."""

import json

import pytest

from evals.overlap.store_text import parts_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import pretrain
from ghost_jax.data.storage import array_record
from ghost_jax.data.storage.artifact_cache import Manifest
from ghost_jax.data.storage.schema import Record
from ghost_jax.text import chat_format, tokenizer

FACT = {"subject": "Phishing", "relation": "tactic", "object": "Initial Access", "evidence": "It serves access."}
RECORDS = [
    Record(f"D-{n}", "notes", f"Title {n}", f"Document {n} tells of " + "naïve “users” and servers " * n, "", "")
    for n in range(12)
]


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer.train([pretrain.text_of(record) for record in RECORDS], 400)


def write_store(folder, vocabulary, datasets):
    """Writes a store of datasets, `name -> split -> rows`, as `ghost_jax.data.prepare` does."""
    counts = {name: array_record.write_examples(folder, name, splits) for name, splits in datasets.items()}
    vocabulary.save(folder / "tokenizer.json")
    Manifest(fingerprint="1", datasets=counts).write(folder)
    return folder


def test_documents_come_with_the_facts_that_their_text_does_not_state(tmp_path):
    record = {"id": "T1566", "source": "attack", "title": "Phishing", "text": "Messages.", "url": "", "license": ""}
    (tmp_path / "manifest.json").write_text('{"fingerprint": "1"}')
    (tmp_path / "documents.jsonl").write_text(json.dumps(record | {"facts": [FACT]}) + "\n")
    (part,) = parts_of(tmp_path)
    assert (part.store, part.name, part.size, part.split) == (tmp_path.name, "documents", 1, "")
    (text,) = part.texts
    assert (text.id, text.source) == ("T1566", "attack")
    assert text.text == "T1566\nPhishing\nMessages.\nInitial Access\nIt serves access."


@pytest.mark.parametrize("window", [7, 16, 5000])
def test_windows_are_joined_to_the_documents_that_they_were_cut_from(tmp_path, vocabulary, window):
    rows = list(pretrain.build(lambda: iter(RECORDS), vocabulary, "train", window))
    store = write_store(tmp_path, vocabulary, {"pretrain": {"train": rows}})
    (part,) = parts_of(store)
    texts = list(part.texts)
    assert (part.name, part.size) == ("pretrain/train", len(texts))
    whole = "".join(text.text for text in texts)
    # The tail that filled no window was never written.
    assert "".join(f"<|bos|>{pretrain.text_of(record)}<|eos|>" for record in RECORDS).startswith(whole)
    assert len(texts) > len(RECORDS) - 3
    starts = [row for row in rows if vocabulary.id("<|bos|>") in row["tokens"].tolist()]
    assert texts[0].id == "train-00000000"
    assert {text.id for text in texts} <= {row["id"] for row in starts}


def test_conversations_stay_apart_and_the_test_split_is_known(tmp_path, vocabulary):
    grown = vocabulary.with_chat_tokens(["ATT&CK"])

    def row(name):
        turns = [chat_format.Message("user", f"Who is {name}?"), chat_format.Message("assistant", name)]
        tokens, mask = chat_format.render(grown, turns)
        return {"id": name, "source": "qa", "letter": "", "tokens": tokens, "mask": mask}

    splits = {"train": [row("APT28"), row("APT1")], "test": [row("Turla")]}
    parts = list(parts_of(write_store(tmp_path, grown, {"qa": splits})))
    assert {part.name: part.split for part in parts} == {"qa/train": "train", "qa/test": "test"}
    texts = [text for part in parts for text in part.texts]
    assert {text.id for text in texts} == {"APT28", "APT1", "Turla"}
    assert all(f"Who is {text.id}?" in text.text and "Who is" not in text.text[20:] for text in texts)


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no prepared store: it has no manifest\.json"):
        list(parts_of(tmp_path))
    (tmp_path / "manifest.json").write_text('{"fingerprint": "1"}')
    with pytest.raises(UserError, match="holds neither documents nor examples"):
        list(parts_of(tmp_path))
    (tmp_path / "documents.jsonl").write_text('{"id": "1"]\n')
    (part,) = parts_of(tmp_path)
    with pytest.raises(UserError, match=r"documents\.jsonl, line 1, column"):
        list(part.texts)
