"""evals/overlap: records that hold the test are refused in any typography, whole texts come out of cut windows."""

import json

import pytest

from evals.overlap import contamination
from evals.overlap.store_text import parts_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import pretrain
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.sources import attack
from ghost_jax.data.storage import array_record
from ghost_jax.data.storage.artifact_cache import Manifest
from ghost_jax.data.storage.schema import Record
from ghost_jax.text import chat_format, mcq_format, tokenizer

LONG = "Which of these mitigations keeps users from running unsigned applications on a workstation?"
OPTIONS = ["Execution Prevention", "User Training for Administrators", "Network Segmentation", "Audit"]
LANGUAGE = "Which language is misused most often when the user's input reaches a database unchecked?"
LANGUAGES = ["SQL", "None", "HTML", "Both"]
NAMED = "Does the mitigation Execution Prevention keep unsigned applications from being run by users?"
SHORT = "What is phishing?"
SHORTS = ["A social engineering attack by mail", "A scan of ports", "A rule of a firewall", "A kind of malware"]
SYMBOLS = "Which operator compares two values in this language without converting them?"
ITEMS = [
    ("long", LONG, OPTIONS),
    ("language", LANGUAGE, LANGUAGES),
    ("named", NAMED, ["Execution Prevention does", "It does not", "Antivirus does", "Nothing does"]),
    ("short", SHORT, SHORTS),
    ("tiny", "Is it?", ["Yes", "No"]),
    ("symbols", SYMBOLS, ["===", "=="]),
]
FAR = " ".join(f"filler{n}" for n in range(200))

# record -> (its text, {item: why it is contaminated})
BY_OPTIONS, BY_GOLD = "stem with its options", "stem with its gold option"
REFUSED = {
    "as published": (mcq_format.ask(LONG, OPTIONS), {"long": BY_OPTIONS}),
    "letters behind": (mcq_format.ask(LONG, OPTIONS, "letter_after"), {"long": BY_OPTIONS}),
    "options in another order": (f"{LONG} {' / '.join(reversed(OPTIONS))}", {"long": BY_OPTIONS}),
    "options first": (f"{', '.join(OPTIONS)}: {LONG}", {"long": BY_OPTIONS}),
    "case and blanks": (f"{LONG.upper()}\n\n{FAR}  EXECUTION\n\tPREVENTION", {"long": BY_GOLD}),
    "html": (f"<p>{LONG.replace(' ', '&nbsp;<b></b>')}</p><ul><li>Execution <i>Prevention</i></ul>", {"long": BY_GOLD}),
    "full width": (LONG.replace("users", "ｕｓｅｒｓ") + f" {OPTIONS[0]}", {"long": BY_GOLD}),
    "soft hyphens": (LONG.replace("unsigned", "un\u00adsigned") + f" {OPTIONS[0]}", {"long": BY_GOLD}),
    "curly quotes": (f"“{LANGUAGE.replace(chr(39), '’')}” — ‘SQL’", {"language": BY_GOLD}),
    "gold of one word beside": (f"{LANGUAGE} The answer is {'quite ' * 15} SQL.", {"language": BY_GOLD}),
    "short stem beside its gold": (f"FAQ. {SHORT} {SHORTS[0]}.", {"short": BY_GOLD}),
    "two items at once": (f"{SHORT} {SHORTS[0]}. {LONG} {OPTIONS[0]}.", {"short": BY_GOLD, "long": BY_GOLD}),
}
ALLOWED = {
    "stem alone": LONG,
    "a word of the stem changed": mcq_format.ask(LONG.replace("users", "people"), OPTIONS),
    "another gold": f"{LONG} {OPTIONS[1]}",
    "gold inside the stem alone": f"{NAMED} {NAMED}",
    "gold of one word far away": f"{LANGUAGE} {FAR} SQL",
    "short stem far from its gold": f"{SHORT} {FAR} {SHORTS[0]}",
    "short stem far from its options": f"{SHORT} {FAR} {FAR} {' '.join(SHORTS)}",
    "fewer than 8 words": "Is it? Yes. No. Is it?",
    "options without words": f"{SYMBOLS} === ==",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_items(folder, items=ITEMS):
    path = folder / "items.jsonl"
    lines = [
        {"id": name, "question": question, "options": dict(zip("ABCD", options, strict=False)), "answer": "A"}
        for name, question, options in items
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_corpus(folder, texts, fingerprint="1", facts=()):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"kind": "corpus", "fingerprint": fingerprint}))
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for name, text in texts.items():
            record = {"id": name, "source": name.split()[0], "title": "", "text": text, "url": "", "license": ""}
            file.write(json.dumps(record | {"facts": list(facts)}) + "\n")
    return folder


def write_dataset(folder, vocabulary, name, splits):
    folder.mkdir(exist_ok=True)
    counts = {name: array_record.write_examples(folder, name, splits)}
    vocabulary.save(folder / "tokenizer.json")
    Manifest(fingerprint=folder.name, datasets=counts).write(folder)
    return folder


def search(folder, texts, items=ITEMS, **how) -> dict:
    return contamination.check(read_items(write_items(folder, items)), [write_corpus(folder / "corpus", texts, **how)])


def found_in(result) -> dict:
    """record -> {item: why} of a result's contaminated records."""
    found: dict[str, dict] = {}
    for at in result["contaminated"]:
        found.setdefault(at["record"], {})[at["item"]] = at["reason"]
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return search(tmp_path_factory.mktemp("data"), {name: text for name, (text, _) in REFUSED.items()} | ALLOWED)


@pytest.mark.parametrize("record", [*REFUSED, *ALLOWED])
def test_a_record_is_contaminated_where_it_asks_and_answers_an_item(searched, record):
    _, expected = REFUSED.get(record, ("", None))
    assert found_in(searched).get(record) == expected


def test_a_refusal_counts_the_records_and_names_the_first(searched):
    with pytest.raises(UserError) as caught:
        contamination.refuse(searched)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("items.jsonl", "3 of its 6", "item long in corpus documents, record as published", "10 more"):
        assert part in message


def test_a_result_is_cached_by_items_store_and_version(tmp_path, monkeypatch):
    leak, clean = {"leak": f"{LONG} {OPTIONS[0]}"}, {"clean": LONG}

    def contaminated(texts, **how) -> int:
        return search(tmp_path, texts, **how)["counts"]["contaminated"]

    assert contaminated(leak) == 1
    assert contaminated(clean) == 1, "the same fingerprint: read from the cache"
    assert contaminated(clean, fingerprint="2") == 0
    assert contaminated(leak, items=ITEMS[1:]) == 0
    monkeypatch.setattr(contamination, "VERSION", contamination.VERSION + 1)
    assert contaminated(clean) == 0


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer.train([LONG, *OPTIONS, FAR], 400)


def conversation(vocabulary, name, question, options) -> dict:
    turns = [chat_format.Message("user", mcq_format.ask(question, options)), chat_format.Message("assistant", "A")]
    tokens, mask = chat_format.render(vocabulary, turns)
    return {"id": name, "source": "attack", "letter": "A", "tokens": tokens, "mask": mask}


@pytest.mark.parametrize("window", [7, 16, 23, 5000])
def test_windows_are_joined_so_that_a_question_across_a_cut_is_found(tmp_path, vocabulary, window):
    texts = [FAR, f"{LONG} {OPTIONS[0]}", *(f"naïve “users” {n}" for n in range(9)), FAR]
    records = [Record(f"D-{n}", "notes", f"Title {n}", text, "", "") for n, text in enumerate(texts)]
    rows = list(pretrain.build(lambda: iter(records), vocabulary, "train", window))
    store = write_dataset(tmp_path / "pretrain-1", vocabulary, "pretrain", {"train": rows})
    (part,) = parts_of(store)
    found = list(part.texts)
    assert (part.name, part.size) == ("pretrain/train", len(found))
    whole = "".join(f"<|bos|>{pretrain.text_of(record)}<|eos|>" for record in records)
    assert whole.startswith("".join(text.text for text in found)), "a tail that filled no window was never written"
    starts = {row["id"] for row in rows if vocabulary.id(tokenizer.BOS) in row["tokens"].tolist()}
    assert {text.id for text in found} <= starts
    if window < 5000:
        (at,) = contamination.check(read_items(write_items(tmp_path)), [store])["contaminated"]
        assert (at["item"], at["part"], at["reason"]) == ("long", "pretrain/train", BY_GOLD)
        assert at["record"] in starts


def test_held_out_questions_are_refused_in_training_alone_and_conversations_stay_apart(tmp_path, vocabulary):
    grown = vocabulary.with_chat_tokens([])
    one, two = conversation(grown, "q1", LONG, OPTIONS), conversation(grown, "q2", LANGUAGE, LANGUAGES)
    items = read_items(write_items(tmp_path, ITEMS[:1]))
    clean = write_dataset(tmp_path / "clean", grown, "mcq", {"train": [two], "test": [one]})
    assert {part.split: [text.id for text in part.texts] for part in parts_of(clean)} == {
        "train": ["q2"],
        "test": ["q1"],
    }
    result = contamination.check(items, [clean])
    assert {part["part"]: part["contaminated"] for part in result["parts"]} == {"mcq/train": 0, "mcq/test": 1}
    assert (result["counts"]["records"], result["counts"]["contaminated"]) == (1, 0)
    contamination.refuse(result)
    for split in ("train", "validation"):
        leaking = write_dataset(tmp_path / split, grown, "mcq", {split: [one, two]})
        result = contamination.check(items, [clean, leaking])
        assert found_in(result) == {"q1": {"long": BY_OPTIONS}}
        with pytest.raises(UserError, match=rf"item long in {split} mcq/{split}, record q1"):
            contamination.refuse(result)


def test_documents_include_the_facts_that_their_text_does_not_state(tmp_path):
    fact = {"subject": "Phishing", "relation": "tactic", "object": "Initial Access", "evidence": "It serves access."}
    (part,) = parts_of(write_corpus(tmp_path, {"Phishing": "Messages."}, facts=[fact]))
    assert (part.store, part.name, part.size, part.split) == (tmp_path.name, "documents", 1, "")
    assert [text.text for text in part.texts] == ["Phishing\n\nMessages.\nInitial Access\nIt serves access."]


def test_several_stores_are_named_and_a_folder_that_is_none_is_refused(tmp_path):
    leaking = write_corpus(tmp_path / "leaking", {"leak": f"{LONG} {OPTIONS[0]}"}, fingerprint="leaking")
    clean = write_corpus(tmp_path / "clean", {"stem": LONG}, fingerprint="clean")
    items = read_items(write_items(tmp_path))
    contamination.refuse(contamination.check(items, [clean]))
    result = contamination.check(items, [clean, leaking])
    assert result["stores"] == [{"name": name, "fingerprint": name} for name in ("clean", "leaking")]
    assert found_in(result) == {"leak": {"long": BY_GOLD}}
    with pytest.raises(UserError, match="nowhere"):
        contamination.check(items, [tmp_path / "nowhere"])


@pytest.mark.slow  # reads and searches all of ATT&CK
def test_attack_shares_sentences_with_ctibench_and_no_question(ghost_data, tmp_path):
    records = attack.read(next((ghost_data / "raw").glob("enterprise-attack-15.1.json*")))
    corpus = write_corpus(tmp_path / "corpus", {record.id: f"{record.title}\n\n{record.text}" for record in records})
    result = contamination.check(read_items(ghost_data / "ctibench" / "cti-mcq.tsv"), [corpus])
    contamination.refuse(result)
    assert (result["counts"]["stem"], result["counts"]["contaminated"]) == (0, 0)
    assert 150 < result["counts"]["ngram"] < 300
