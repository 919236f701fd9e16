"""evals/overlap: records that hold the test are refused in any typography, whole texts come out of cut windows."""

import dataclasses
import json

import numpy as np
import pytest

from evals.overlap import contamination
from evals.overlap.store_text import parts_of
from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import pretrain
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import Item, Items
from ghost_jax.data.sources import attack
from ghost_jax.data.storage import array_record
from ghost_jax.data.storage.artifact_cache import Manifest
from ghost_jax.data.storage.schema import Fact, Record
from ghost_jax.text import mcq_format, tokenizer

LONG = "Which of these mitigations keeps users from running unsigned applications on a workstation?"
OPTIONS = ("Execution Prevention", "User Training for Administrators", "Network Segmentation", "Audit")
LANGUAGE = "Which language is misused most often when the user's input reaches a database unchecked?"
LANGUAGES = ("SQL", "None", "HTML", "Both")
NAMED = "Does the mitigation Execution Prevention keep unsigned applications from being run by users?"
SHORT = "What is phishing?"
SHORTS = ("A social engineering attack by mail", "A scan of ports", "A rule of a firewall", "A kind of malware")
SYMBOLS = "Which operator compares two values in this language without converting them?"
CHINESE = "哪种技术最能描述攻击者使用脚本执行恶意命令"
ITEMS = (
    Item("long", LONG, OPTIONS, 0),
    Item("language", LANGUAGE, LANGUAGES, 0),
    Item("named", NAMED, ("Execution Prevention does", "It does not", "Antivirus does", "Nothing does"), 0),
    Item("short", SHORT, SHORTS, 0),
    Item("tiny", "Is it?", ("Yes", "No"), 0),
    Item("symbols", SYMBOLS, ("===", "=="), 0),
    Item("chinese", CHINESE, ("命令与脚本解释器", "钓鱼攻击"), 0),
)
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
    "json in json": (json.dumps(json.dumps({"text": f"\n{LANGUAGE}\n{LANGUAGES[0]}"})), {"language": BY_GOLD}),
    "html of html": (f"{LANGUAGE.replace(chr(39), '&amp;#39;')} SQL", {"language": BY_GOLD}),
    "beside chinese": (f"问题是{LONG}正确答案是{OPTIONS[0]}。", {"long": BY_GOLD}),
    "beside korean": (f"{LONG} 정답은 {OPTIONS[0]}입니다.", {"long": BY_GOLD}),
    "in chinese": (f"请问{CHINESE}？答案是命令与脚本解释器。", {"chinese": BY_GOLD}),
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


def check(stores, items=ITEMS) -> dict:
    return contamination.check(Items("the test", "folder/items.jsonl", "", items), stores)


def write_corpus(folder, texts, fingerprint="1", facts=()):
    folder.mkdir(exist_ok=True)
    Manifest(kind="corpus", fingerprint=fingerprint).write(folder)
    records = [Record(name, name.split()[0], "", text, "", "", facts) for name, text in texts.items()]
    lines = (json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
    (folder / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_dataset(folder, vocabulary, name, splits):
    folder.mkdir(exist_ok=True)
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


def test_records_that_ask_and_answer_an_item_are_refused(tmp_path):
    texts = {name: text for name, (text, _) in REFUSED.items()}
    result = check([write_corpus(tmp_path, texts | ALLOWED)])
    assert found_in(result) == {name: expected for name, (_, expected) in REFUSED.items()}
    with pytest.raises(UserError, match=r"items\.jsonl.* 4 of its 7 .*long .*as published.* 15 more"):
        contamination.refuse(result)


def test_a_result_is_cached_by_items_store_and_version(tmp_path, monkeypatch):
    def contaminated(text: str, fingerprint: str = "1", items: tuple[Item, ...] = ITEMS) -> int:
        return check([write_corpus(tmp_path, {"text": text}, fingerprint)], items)["counts"]["contaminated"]

    leak = f"{LONG} {OPTIONS[0]}"
    assert contaminated(leak) == 1
    assert contaminated(LONG) == 1, "read from the cache"
    assert contaminated(LONG, fingerprint="2") == 0
    assert contaminated(leak, items=ITEMS[1:]) == 0
    monkeypatch.setattr(contamination, "VERSION", contamination.VERSION + 1)
    assert contaminated(LONG) == 0


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizer.train([LONG, *OPTIONS, FAR], 400)


@pytest.mark.parametrize("window", [7, 23, 5000])
def test_windows_are_joined_so_that_a_question_across_a_cut_is_found(tmp_path, vocabulary, window):
    texts = [FAR, f"{LONG} {OPTIONS[0]}", *(f"naïve “users” {n}" for n in range(9)), FAR]
    records = [Record(f"D-{n}", "notes", f"Title {n}", text, "", "") for n, text in enumerate(texts)]
    rows = list(pretrain.build(lambda: records, vocabulary, "train", window))
    store = write_dataset(tmp_path / "pretrain", vocabulary, "pretrain", {"train": rows})
    (part,) = parts_of(store)
    found = list(part.texts)
    assert (part.name, part.size) == ("pretrain/train", len(found))
    complete = "".join(f"<|bos|>{pretrain.text_of(record)}<|eos|>" for record in records)
    assert complete.startswith("".join(text.text for text in found)), "a tail that filled no window was never written"
    starts = {row["id"] for row in rows if vocabulary.id(tokenizer.BOS) in row["tokens"].tolist()}
    assert {text.id for text in found} <= starts
    if window < 5000:
        (at,) = check([store])["contaminated"]
        assert (at["item"], at["part"], at["reason"]) == ("long", "pretrain/train", BY_GOLD)
        assert at["record"] in starts


def test_held_out_questions_are_refused_in_training_alone(tmp_path, vocabulary):
    def row(name: str, text: str) -> dict:
        ids = np.array(vocabulary.encode(text), np.int32)
        return {"id": name, "source": "attack", "letter": "A", "tokens": ids, "mask": ids > 0}

    one, two = row("q1", mcq_format.ask(LONG, OPTIONS)), row("q2", mcq_format.ask(LANGUAGE, LANGUAGES))
    clean = write_dataset(tmp_path / "clean", vocabulary, "mcq", {"train": [two], "test": [one]})
    result = check([clean], ITEMS[:1])
    assert {part["part"]: part["contaminated"] for part in result["parts"]} == {"mcq/train": 0, "mcq/test": 1}
    assert (result["counts"]["records"], result["counts"]["contaminated"]) == (1, 0)
    contamination.refuse(result)
    for split in ("train", "validation"):
        leaking = write_dataset(tmp_path / split, vocabulary, "mcq", {split: [one, two]})
        result = check([clean, leaking], ITEMS[:1])
        assert result["stores"] == [{"name": name, "fingerprint": name} for name in ("clean", split)]
        assert found_in(result) == {"q1": {"long": BY_OPTIONS}}
        with pytest.raises(UserError, match=rf"long in {split} mcq/{split}, record q1"):
            contamination.refuse(result)


def test_documents_include_the_facts_that_their_text_does_not_state(tmp_path):
    fact = Fact("Phishing", "tactic", "Initial Access", "It serves access.")
    (part,) = parts_of(write_corpus(tmp_path, {"Phishing": "Messages."}, facts=(fact,)))
    assert (part.store, part.name, part.size, part.split) == (tmp_path.name, "documents", 1, "")
    assert [text.text for text in part.texts] == ["Phishing\n\nMessages.\nInitial Access\nIt serves access."]


@pytest.mark.slow  # reads and searches all of ATT&CK
def test_attack_shares_sentences_with_ctibench_and_no_question(ghost_data, tmp_path):
    records = attack.read(next((ghost_data / "raw").glob("enterprise-attack-15.1.json*")))
    corpus = write_corpus(tmp_path, {record.id: f"{record.title}\n\n{record.text}" for record in records})
    result = contamination.check(read_items(ghost_data / "ctibench" / "cti-mcq.tsv"), [corpus])
    assert (result["counts"]["stem"], result["contaminated"]) == (0, [])
    assert 150 < result["counts"]["ngram"] < 300
