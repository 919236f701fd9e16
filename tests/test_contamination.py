"""`python -m evals.contamination`: what holds the test is refused, however it was set, and nothing else is."""

import json

import pytest

import ghost_jax
from evals.items.formats import read_items
from evals.overlap import contamination
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import pretrain
from ghost_jax.data.sources import attack
from ghost_jax.data.storage import array_record
from ghost_jax.data.storage.artifact_cache import Manifest
from ghost_jax.data.storage.schema import Record
from ghost_jax.text import chat_format, mcq_format, tokenizer
from tests.conftest import paragraph_of

LONG = "Which of these mitigations keeps users from running unsigned applications on a workstation?"
OPTIONS = ["Execution Prevention", "User Training for Administrators", "Network Segmentation", "Audit"]
LANGUAGE = "Which language is misused most often when the user's input reaches a database unchecked?"
LANGUAGES = ["SQL", "None", "HTML", "Both"]
NAMED = "Does the mitigation Execution Prevention keep unsigned applications from being run by users?"
SHORT = "What is phishing?"
SHORTS = ["A social engineering attack by mail", "A scan of ports", "A rule of a firewall", "A kind of malware"]
ITEMS = [
    ("long", LONG, OPTIONS, "A"),
    ("language", LANGUAGE, LANGUAGES, "A"),
    ("named", NAMED, ["Execution Prevention does", "It does not", "Antivirus does", "Nothing does"], "A"),
    ("short", SHORT, SHORTS, "A"),
    ("tiny", "Is it?", ["Yes", "No"], "A"),
    ("symbols", "Which operator compares two values in this language without converting them?", ["===", "=="], "A"),
]
FAR = " ".join(f"filler{n}" for n in range(200))

# record -> (its text, {item: why it is contaminated})
BY_OPTIONS, BY_GOLD = "stem with its options", "stem with its gold option"
REFUSED = {
    "as published": (mcq_format.ask(LONG, OPTIONS), {"long": BY_OPTIONS}),
    "letters behind": (mcq_format.ask(LONG, OPTIONS, "letter_after"), {"long": BY_OPTIONS}),
    "options in another order": (f"{LONG} {' / '.join(reversed(OPTIONS))}", {"long": BY_OPTIONS}),
    "options first": (f"{', '.join(OPTIONS)}: {LONG}", {"long": BY_OPTIONS}),
    "options far from a long stem": (f"{LANGUAGE} {FAR} None of HTML, SQL; both", {"language": BY_OPTIONS}),
    "case and blanks": (f"{LONG.upper()}\n\n{FAR}  EXECUTION\n\tPREVENTION", {"long": BY_GOLD}),
    "html": (f"<p>{LONG.replace(' ', '&nbsp;<b></b>')}</p><ul><li>Execution <i>Prevention</i></ul>", {"long": BY_GOLD}),
    "curly quotes": (f"“{LANGUAGE.replace(chr(39), '’')}” — ‘SQL’", {"language": BY_GOLD}),
    "gold of one word beside": (f"{LANGUAGE} The answer is {'quite ' * 15} SQL.", {"language": BY_GOLD}),
    "gold outside the stem as well": (f"{NAMED} {FAR} Execution Prevention does.", {"named": BY_GOLD}),
    "short stem beside its gold": (f"FAQ. {SHORT} {SHORTS[0]}.", {"short": BY_GOLD}),
    "short stem after its options": (f"{' '.join(reversed(SHORTS))} {SHORT}", {"short": BY_OPTIONS}),
    "two items at once": (f"{SHORT} {SHORTS[0]}. {LONG} {OPTIONS[0]}.", {"short": BY_GOLD, "long": BY_GOLD}),
}
ALLOWED = {
    "stem alone": LONG,
    "options alone": " ".join(OPTIONS),
    "a word of the stem changed": mcq_format.ask(LONG.replace("users", "people"), OPTIONS),
    "another gold": f"{LONG} {OPTIONS[1]}",
    "gold inside the stem alone": f"{NAMED} {NAMED}",
    "gold of one word far away": f"{LANGUAGE} {FAR} SQL",
    "gold as part of a word": f"{LANGUAGE} NoSQL or MySQL",
    "words of the options everywhere": "None of HTML and SQL. Both are languages. " * 20,
    "short stem far from its gold": f"{SHORT} {FAR} {SHORTS[0]}",
    "short stem far from its options": f"{SHORT} {FAR} {FAR} {' '.join(SHORTS)}",
    "too little said to mean anything": "Is it? Yes. No. Is it?",
    "options without words": "Which operator compares two values in this language without converting them? === ==",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_items(folder, items=ITEMS):
    path = folder / "items.jsonl"
    lines = [
        {"id": name, "question": question, "options": dict(zip("ABCDEFGHIJ", options, strict=False)), "answer": answer}
        for name, question, options, answer in items
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_corpus(folder, texts, fingerprint="1"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"kind": "corpus", "fingerprint": fingerprint}))
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for name, text in texts.items():
            record = {"id": name, "source": name.split()[0], "title": "", "text": text, "url": "", "license": ""}
            file.write(json.dumps(record | {"facts": []}) + "\n")
    return folder


def write_dataset(folder, vocabulary, name, splits):
    counts = {name: array_record.write_examples(folder, name, splits)}
    vocabulary.save(folder / "tokenizer.json")
    Manifest(fingerprint=folder.name, datasets=counts).write(folder)
    return folder


def found_in(result) -> dict:
    """record -> {item: why} of a result's contaminated records."""
    found: dict[str, dict] = {}
    for at in result["contaminated"]:
        found.setdefault(at["record"], {})[at["item"]] = at["reason"]
    return found


# ---- What is refused, and what is not ----


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    corpus = write_corpus(folder / "corpus", {name: text for name, (text, _) in REFUSED.items()} | ALLOWED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return contamination.check(read_items(write_items(folder)), [corpus])


@pytest.mark.parametrize("record", REFUSED)
def test_a_record_that_asks_and_answers_an_item_is_contaminated(searched, record):
    assert found_in(searched)[record] == REFUSED[record][1]


@pytest.mark.parametrize("record", ALLOWED)
def test_a_record_that_does_less_is_not(searched, record):
    assert record not in found_in(searched)


def test_a_refusal_names_items_and_records(searched):
    with pytest.raises(UserError) as caught:
        contamination.refuse(searched)
    message = str(caught.value)
    assert message.startswith(
        "items.jsonl: the data hold 4 of its 6 items together with an answer: item long in corpus"
    )
    assert "record as published (stem with its options)" in message
    assert "; and 11 more." in message
    assert "\n" not in message


def test_matches_are_counted_by_kind(tmp_path):
    texts = {
        "a words of a question": f"It keeps {' '.join(LONG.split()[4:])}, they say.",
        "a stem": NAMED,
        "b options in any order": "; ".join(reversed(SHORTS)),
        "b other": "Nothing of the kind is said here, though users run applications on a workstation.",
    }
    items = read_items(write_items(tmp_path))
    result = contamination.check(items, [write_corpus(tmp_path / "corpus", texts)])
    counts = {"records": 4, "ngram": 2, "stem": 1, "options": 1, "contaminated": 0}
    assert result["counts"] == counts
    assert result["parts"] == [{"store": "corpus", "part": "documents", "held_out": False, **counts}]
    assert result["shares"] == {"ngram": 2 / 6, "stem": 1 / 6, "options": 1 / 6, "contaminated": 0}
    assert result["sources"] == {"a": {"records": 2, "share": 1.0}}
    assert [(at["item"], at["record"], at["words"]) for at in result["examples"]] == [
        ("named", "a stem", NAMED.lower().rstrip("?")),
        ("long", "a words of a question", "keeps users from running unsigned applications on a workstation"),
    ]
    assert result["verdict"].startswith("not contaminated: ")
    assert result["items"] == {"name": "items.jsonl", "file": "items.jsonl", "sha256": items.sha256}
    contamination.refuse(result)


# ---- Datasets ----


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer.train([LONG, *OPTIONS, FAR], 400)


@pytest.mark.parametrize("window", [11, 16, 23])
def test_a_question_that_lies_across_windows_is_found(tmp_path, vocabulary, window):
    texts = [FAR, f"{LONG} {OPTIONS[0]}", FAR]
    records = [Record(f"D-{n}", "notes", "", text, "", "") for n, text in enumerate(texts)]
    rows = list(pretrain.build(lambda: iter(records), vocabulary, "train", window))
    assert not any(LONG in vocabulary.decode(row["tokens"]) for row in rows)
    store = write_dataset(tmp_path / "pretrain-1", vocabulary, "pretrain", {"train": rows})
    result = contamination.check(read_items(write_items(tmp_path)), [store])
    (at,) = result["contaminated"]
    assert (at["item"], at["part"], at["reason"]) == ("long", "pretrain/train", BY_GOLD)
    start = next(row for row in rows if row["id"] == at["record"])
    assert vocabulary.id(tokenizer.BOS) in start["tokens"]


def test_the_held_out_questions_of_the_project_are_refused_in_training_alone(tmp_path, vocabulary):
    grown = vocabulary.with_chat_tokens([])

    def row(number, question, options, letter):
        turns = [
            chat_format.Message("user", mcq_format.ask(question, options)),
            chat_format.Message("assistant", letter),
        ]
        tokens, mask = chat_format.render(grown, turns)
        return {"id": f"q{number}", "source": "attack", "letter": letter, "tokens": tokens, "mask": mask}

    one, two = row(1, LONG, OPTIONS, "A"), row(2, LANGUAGE, LANGUAGES, "A")
    items = read_items(write_items(tmp_path, ITEMS[:1]))
    clean = write_dataset(tmp_path / "clean", grown, "mcq", {"train": [two], "test": [one]})
    result = contamination.check(items, [clean])
    assert {part["part"]: part["contaminated"] for part in result["parts"]} == {"mcq/train": 0, "mcq/test": 1}
    assert (result["counts"]["records"], result["counts"]["contaminated"]) == (1, 0)
    contamination.refuse(result)

    for split in ("train", "validation"):
        leaking = write_dataset(tmp_path / split, grown, "mcq", {split: [one, two]})
        with pytest.raises(UserError, match=rf"item long in {split} mcq/{split}, record q1 \(stem with its options\)"):
            contamination.refuse(contamination.check(items, [clean, leaking]))


# ---- The cache ----


def test_a_second_call_reads_what_the_first_found(tmp_path):
    items = read_items(write_items(tmp_path))
    corpus = write_corpus(tmp_path / "corpus", {"leak": f"{LONG} {OPTIONS[0]}"})
    first = contamination.check(items, [corpus])
    (corpus / "documents.jsonl").unlink()
    assert contamination.check(items, [corpus]) == first


def test_other_items_or_another_store_are_searched_anew(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"leak": f"{LONG} {OPTIONS[0]}"})
    items = read_items(write_items(tmp_path))
    assert contamination.check(items, [corpus])["counts"]["contaminated"] == 1
    assert contamination.check(read_items(write_items(tmp_path, ITEMS[1:])), [corpus])["counts"]["contaminated"] == 0
    write_corpus(corpus, {"clean": LONG}, fingerprint="2")
    assert contamination.check(items, [corpus])["counts"]["contaminated"] == 0


def test_another_version_of_the_search_searches_anew(tmp_path, monkeypatch):
    items = read_items(write_items(tmp_path))
    corpus = write_corpus(tmp_path / "corpus", {"leak": f"{LONG} {OPTIONS[0]}"})
    contamination.check(items, [corpus])
    write_corpus(corpus, {"clean": LONG})  # the same name and fingerprint: only a new search sees it
    assert contamination.check(items, [corpus])["counts"]["contaminated"] == 1
    monkeypatch.setattr(contamination, "VERSION", contamination.VERSION + 1)
    assert contamination.check(items, [corpus])["counts"]["contaminated"] == 0


# ---- The command ----


def test_the_command(ghost, tmp_path):
    items = write_items(tmp_path)
    leaking = write_corpus(tmp_path / "leaking", {"leak": f"{LONG} {OPTIONS[0]}"}, fingerprint="leaking")
    clean = write_corpus(tmp_path / "clean", {"stem": LONG}, fingerprint="clean")
    out = tmp_path / "new" / "result.json"
    command = ["evals.contamination", f"--items={items}", f"--data={clean}"]

    outcomes = ghost.together(
        {
            "clean": lambda: ghost(*command),
            "leaking": lambda: ghost(*command, f"--data={leaking}", f"--out={out}", check=False),
            "no store": lambda: ghost(*command, f"--data={tmp_path / 'nowhere'}", check=False),
            "no data": lambda: ghost(*command[:2], check=False),
        }
    )
    assert "verdict: not contaminated: no record asks an item and answers it. 1 of 6" in outcomes["clean"].stdout
    assert "verdict: CONTAMINATED: the data hold 1 of 6 items" in outcomes["leaking"].stdout
    paragraph = paragraph_of(outcomes["leaking"], 1)
    assert "item long in leaking documents, record leak (stem with its gold option)" in paragraph
    result = json.loads(out.read_text())
    assert result["ghost_jax"] == ghost_jax.__version__
    assert result["stores"] == [{"name": name, "fingerprint": name} for name in ("clean", "leaking")]
    assert found_in(result) == {"leak": {"long": BY_GOLD}}
    assert "nowhere is no prepared store" in paragraph_of(outcomes["no store"], 1)
    assert "--data" in paragraph_of(outcomes["no data"], 2)


# ---- The real benchmark ----


def test_attack_shares_sentences_with_ctibench_and_no_question(ghost_data, tmp_path):
    records = attack.read(next((ghost_data / "raw").glob("enterprise-attack-15.1.json*")))
    corpus = write_corpus(tmp_path / "corpus", {record.id: f"{record.title}\n\n{record.text}" for record in records})
    result = contamination.check(read_items(ghost_data / "ctibench" / "cti-mcq.tsv"), [corpus])
    contamination.refuse(result)
    assert (result["counts"]["stem"], result["counts"]["contaminated"]) == (0, 0)
    assert 150 < result["counts"]["ngram"] < 300
    assert len(result["examples"]) == contamination.EXAMPLES
