"""A user's own text in `data.sources` and own conversations in `data.chats`: read, named, refused."""

import gzip
import json
import os
import signal
import sys
import time
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from ml_collections import ConfigDict
from pyarrow import parquet

from ghost_jax.core.atomic_io import read_json
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data import corpus, prepare
from ghost_jax.data.builders import pretrain
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.own import chats, questions, rows, text
from ghost_jax.data.storage import artifact_cache, files
from ghost_jax.data.storage.schema import Record
from tests.conftest import TINY, both_stages, set_all
from tests.test_config import CHAT, parse
from tests.test_sources_formats import write

URL = "https://a.example"
FULL = {"text": "Ü is a letter.\r\nIt has dots.", "id": "u-1", "title": "Ü", "url": URL, "license": "CC0"}
ROWS = [FULL, {"text": "A second document, long enough to be one."}]
NO_TASK = dict.fromkeys((f"data.mixture.{name}" for name in ("qa", "mcq", "cot", "small_talk")), 0)


def turns(*given: tuple, **more) -> dict:
    return {"messages": [dict(zip(("role", "content", "train"), turn, strict=False)) for turn in given], **more}


ASKED, ANSWER = ("user", "What is a port?"), ("assistant", "A number.")


def lines(path: Path, *found: object, end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode() for each in found]
    path.write_bytes(b"".join(line + end for line in written))
    return path


def documents(entry: object) -> list:
    return list(text.read(*text.find(str(entry))[:4]))


def refusal(read, *given: object) -> str:
    with pytest.raises(UserError) as caught:
        list(read(*given))
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet.gz"])
def test_a_table_gives_its_documents_with_what_they_state(tmp_path, name):
    (folder := tmp_path / "meine Dateien (ü)").mkdir()
    plain = lines(tmp_path / "plain", *ROWS, end=b"\r\n")
    if ".parquet" in name:
        seen = pyarrow.array([1 << 60] * 2, pyarrow.timestamp("us"))  # in the year 38,504
        parquet.write_table(pyarrow.Table.from_pylist(ROWS).append_column("seen", seen), plain)
    stated = Record("u-1", "a", "Ü", "Ü is a letter.\nIt has dots.", URL, "CC0")
    bare = Record(f"{files.stem(name)}/2", "a", "", ROWS[1]["text"], "", "")
    assert documents(write(folder / name, plain.read_bytes())) == [stated, bare]


def test_a_folder_and_a_pattern_give_a_document_a_page(tmp_path):
    folder = tmp_path / "my notes"
    pages = {"a.md": f"# C#\n\n# A{' ' * 10**6}port.", "c.md": "```\n# code\n```\n## Title\nx", "empty.md": " \n"}
    pages |= {"f.md": "---\n# a comment\n---\n# Front\nx", "g.md": "x\n~~~\n# code without an end"}
    for name, content in (pages | {".git/d.md": "hidden", "e.pdf": "not read", "sub/b.txt": "# no heading"}).items():
        lines(folder / name, f"\ufeff{content}".encode())
    write(folder / "sub" / "b.txt.gz", b"packed before it was edited")
    assert {each.id: (each.title, each.text) for each in documents(folder)} == {
        "my_notes/a.md": ("C#", pages["a.md"][6:]),
        "my_notes/c.md": ("Title", pages["c.md"]),
        "my_notes/f.md": ("Front", pages["f.md"]),
        "my_notes/g.md": ("g", pages["g.md"]),
        "my_notes/sub/b.txt": ("b", "# no heading"),
    }
    assert [each.id[9:] for each in documents(f"{folder}/*.md")] == ["a.md", "c.md", "f.md", "g.md"]
    assert documents(folder.rename(tmp_path / "of [2024]") / "sub" / "*.txt")[0].text == "# no heading"


def test_bad_tables_and_missing_files_are_refused_with_their_paths(tmp_path):
    content = {"a.csv": b'text,id\n"one",1\ntwo\n', "b.csv": b'text\n"one\n', "c.parquet": b"none", "d.pdf": b"x"}
    content |= {"e.txt": "ü".encode("utf-16"), "f.csv": b"body\nx\n"}
    for name, each in content.items():
        lines(tmp_path / name, each, end=b"")
    (tmp_path / "empty").mkdir()
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.array([0, 1], "int32").buffers()[1], pyarrow.py_buffer(b"\xff")]
    )
    parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "g.parquet")
    for name in (*content, "g.parquet", "empty", "absent.md", "*.jsonl", "a**.md"):
        assert name in refusal(documents, tmp_path / name)
    assert "~no user/a.md" in refusal(documents, "~no user/a.md")


def test_the_key_of_the_text_is_named_behind_the_path(tmp_path):
    path = lines(tmp_path / "a b.jsonl", {"body": "one"}, {"text": "two"})
    assert f'{path}, line 2: there is no "body"' in refusal(documents, f"{path}#body")
    (tmp_path / "t.csv").write_text("text,title,body\nx,,one\n")
    (found,) = documents(tmp_path / "t.csv#body")
    assert (found.id, found.text, pretrain.text_of(found)) == ("t.csv/2", "one", "one")
    assert [each.text for each in documents(lines(tmp_path / "c#" / "d.md", b"# Title"))] == ["Title"]
    (entry,), _ = corpus.locate([f"{tmp_path}/t.csv#body"], None, print, stand_in=True)
    assert entry.identity()["key"] == "body"


def test_a_dataset_of_the_library_is_read_from_disk(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "ü own"
    lines(folder / "validation.jsonl", *ROWS)
    entry = f"hf:{folder}:validation"
    full, bare = documents(entry)
    assert (full.id, full.title, full.license, bare.text, bare.source) == ("u-1", "Ü", "CC0", ROWS[1]["text"], "own")
    assert "validation" in refusal(documents, f"hf:{folder}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(documents, entry)


def test_each_form_of_conversation_is_read(tmp_path):
    brief, share = ("system", "Be brief."), (("human", "Hi"), ("gpt", "Yes"))
    found = [
        turns(brief, ("system", "In English."), ASKED, ANSWER, ("user", "And?"), ("assistant", "No.", False), id=7),
        {"conversations": [{"from": role, "value": content} for role, content in (brief, *share)]},
        {"instruction": "Add.", "input": "1 + 1", "output": "  2"},
        {"instruction": "Greet.", "input": "", "output": "Hi", "system": "Be brief.", "history": []},
    ]
    read = list(chats.read("mine", lines(tmp_path / "ü b.jsonl", *found, end=b"\r\n\r\n")))
    assert [[turn.content for turn in each.messages] for each in read] == [
        ["Be brief.\n\nIn English.", "What is a port?", "A number.", "And?", "No."],
        *(["Be brief.", "Hi", "Yes"], ["Add.\n\n1 + 1", "  2"], ["Be brief.", "Greet.", "Hi"]),
    ]
    roles = [[turn.role for turn in each.messages] for each in read]
    pair = ["user", "assistant"]
    assert roles == [["system", *pair, *pair], ["system", *pair], pair, ["system", *pair]]
    assert [turn.train for turn in read[0].messages] == [True, True, True, True, False]
    weighed = turns(ASKED, ANSWER, ASKED, ANSWER)
    for turn, weight in zip(weighed["messages"], (0, 0, 0, 1), strict=True):
        turn["weight"] = weight
    (found,) = chats.read("mine", lines(tmp_path / "c.jsonl", weighed))
    assert [turn.train for turn in found.messages] == [False, False, False, True]
    weighed["messages"][3]["weight"] = 0.5
    assert "weight" in refusal(chats.read, "mine", lines(tmp_path / "d.jsonl", weighed))
    assert [each.id for each in read] == ["7", "mine/3", "mine/5", "mine/7"]


def quiz(count: int = 20, **more) -> list[dict]:
    """Returns questions with three options; two in a row have one topic, every fifth has the options of the first."""
    options = [{letter: f"{letter.lower()} of {n % 5 and n}" for letter in "ABC"} for n in range(count)]
    rows = ({"question": f"What is {n}?", "options": of} for n, of in enumerate(options))
    return [row | {"answer": "ABC"[n % 3], "topic": n // 2} | more for n, row in enumerate(rows)]


def test_questions_that_depend_on_each_other_are_in_one_split(tmp_path):
    path = lines(tmp_path / "my quiz ü.jsonl", *quiz())
    found = questions.read("quiz", path, "", seed=0)
    of_split = Counter(each.split for each in found)
    assert of_split["test"] >= 4
    assert of_split["validation"] >= 2
    assert of_split["train"] >= 10
    assert len({each.split for each in found[::5]}) == 1, "they have the same options"
    assert len({each.letter for each in found if each.split == "train"}) > 1
    for row, each in zip(quiz(), found, strict=True):
        assert each.options[each.answer] == row["options"][row["answer"]]
        assert each.split != "test" or each.options == tuple(row["options"].values())
    by_topic = questions.read("quiz", path, "topic", seed=0)
    assert all(one.split == other.split for one, other in zip(by_topic[::2], by_topic[1::2], strict=True))
    assert by_topic[3].url == "1"
    same = [row | {"question": "What is the same?"} for row in quiz(2)]
    repeated = questions.read("quiz", lines(tmp_path / "r.jsonl", *quiz(), *same), "", seed=0)
    assert repeated[-2].split == repeated[-1].split


def test_a_csv_has_the_pages_of_its_questions_and_its_blemishes_are_said(tmp_path):
    rows = [f"What is {n}?,{n},no {n},{'no' if n else '0'},B,q{n},https://a.example/{n // 2}" for n in range(20)]
    (tmp_path / "quiz.csv").write_text(
        "\n".join(
            ["Question,A,B,C,Answer,id,url".replace("C,", "C,D,"), *(row.replace(",B,q", ",other,B,q") for row in rows)]
        )
    )
    said = []
    found = questions.read("quiz", tmp_path / "quiz.csv", "", 0, said.append)
    assert [each.id for each in found[:2]] == ["quiz/q0", "quiz/q1"]
    assert all(one.split == other.split for one, other in zip(found[::2], found[1::2], strict=True))
    assert any("equal" in line for line in said)


def test_questions_that_cannot_be_split_are_refused(tmp_path):
    one_topic = lines(tmp_path / "one.jsonl", *quiz(topic="same"))
    for key in ("topic", "absent"):
        assert "data.question_group" in refusal(questions.read, "quiz", one_topic, key, 0)


def test_ctibench_is_refused_as_training_data(ghost_data):
    assert "CTIBench" in refusal(questions.read, "quiz", ghost_data / "ctibench" / "cti-mcq.tsv", "", 0)


BAD_TEXT = ({"body": "two"}, {"text": 2}, {"text": " "}, {"text": "two", "id": "x"}, {"text": "x" * 300})
BAD_CHATS = ({"text": "a"}, {"messages": []}, {"messages": [{"role": "user"}]}, turns(ASKED, ANSWER, id="x"))
BAD_CHATS += (turns(("tool", "a"), ASKED, ANSWER), turns((*ASKED, True), ANSWER), turns(ASKED, (*ANSWER, "no")))
BAD_CHATS += (turns(ASKED), turns(ASKED, ASKED, ANSWER), turns(ASKED, ANSWER, ("system", "a")), turns(ANSWER))
BAD_CHATS += (turns(ASKED, (*ANSWER, False)), turns(ASKED, ANSWER, tools=[{"name": "search"}]))
BAD_CHATS += ({"instruction": "And?", "output": "No.", "history": [["What is it?", "A port."]]},)
BAD_QUIZ = (quiz(1)[0] | {"answer": "D"}, quiz(1)[0] | {"topic": None})
# kind -> reader, a row, and rows that are invalid behind it
KINDS = {
    "text": (documents, {"text": "one", "id": "x"}, BAD_TEXT),
    "chats": (lambda path: chats.read("mine", path), turns(ASKED, ANSWER, id="x"), BAD_CHATS),
    "questions": (lambda path: questions.read("quiz", path, "topic", 0), quiz(1)[0], BAD_QUIZ),
}


@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, (*_, bad) in KINDS.items() for fault in bad])
def test_a_bad_row_is_refused_with_its_file_and_line(tmp_path, monkeypatch, kind, fault):
    monkeypatch.setattr(files, "MAX_LINE", 250)
    read, good, _ = KINDS[kind]
    path = lines(tmp_path / "ä b.jsonl", good, fault)
    assert f"{path}, line 2" in refusal(read, path)


WRONG = "chats.qa=a", "questions.qa=a", "chats.my-own=a", "mixture.mine=1", "chats.mine=a chats.mine=b"


@pytest.mark.parametrize("words", [*WRONG, "chats.mine=a questions.mine=b"])
def test_a_name_that_is_taken_or_unknown_is_a_wrong_command_line(words):
    with pytest.raises(UsageError, match=f"data.{words.split()[-1].partition('.')[0]}"):
        parse(f"--config={CHAT}:nano", *(f"--config.data.{word}" for word in words.split()))


def test_a_chats_file_enters_the_mixture_under_its_name():
    path = "--config.data.chats.mine=a b.jsonl"
    config, _ = parse(f"--config={CHAT}:nano", "--config.data.mixture.mine=3", path)
    assert (config.data.mixture.mine, config.data.chats.mine, config.is_locked) == (3.0, "a b.jsonl", True)
    assert parse(f"--config={CHAT}:nano", path)[0].data.mixture.mine == 1.0
    letters = ["--config.data.questions.quiz=q.csv", "--config.objective.letter=1", "--config.data.mixture.mcq=0"]
    assert parse(f"--config={CHAT}:nano", "--config.data.mixture.cot=0", *letters)[0].data.mixture.quiz == 1.0


def test_text_and_chats_are_prepared_and_nothing_of_a_bad_file_is_kept(ghost, tmp_path):
    notes, own, cache = tmp_path / "notes", tmp_path / "own.jsonl", tmp_path / "cache"
    lines(notes / "a.md", b"# Ports\n\nA port is a number.")
    lines(notes / "t.jsonl", FULL)
    asked = [turns(("user", f"What is port {n}?"), ANSWER, id=f"c{n}") for n in range(40)]
    prepare = ["ghost_jax.data.prepare", "--config=configs/chat_v5.py:nano"]
    prepare += both_stages(TINY | {"data.sources": f"{notes},embedded"})
    prepare += set_all(NO_TASK | {"data.chats.mine": lines(own, *asked)})
    env = {"XDG_CACHE_HOME": str(cache)}
    ghost.here(*prepare, env=env)
    found = {manifest["kind"]: manifest for manifest in map(read_json, cache.rglob("stores/*/manifest.json"))}
    assert found["corpus"]["documents"]["notes"] == 2
    assert found["corpus"]["licenses"] == {"notes": "CC0, not named", "embedded": "Apache-2.0"}
    assert sum(each["records"] for each in found["mine"]["datasets"]["mine"].values()) == 40
    lines(own, *asked, {"messages": 3})
    assert f"{own}, line 41" in ghost.refused_here(*prepare, env=env)
    other = lines(tmp_path / "other" / "notes.md", b"text")
    message = ghost.refused_here(*prepare, f"--config.data.sources={notes},{other}", env=env)
    assert all(str(path) in message for path in (notes, other))
    assert not list(cache.rglob("*.partial"))


@pytest.mark.slow
def test_own_files_become_a_scored_run_and_a_held_out_question_in_the_chats_stops_it(ghost, tiny_run, tmp_path):
    notes, own, run = tmp_path / "my notes", tmp_path / "chats.jsonl", tmp_path / "mine"
    lines(notes / "a.md", b"# Ports", b"A port is a number.")
    conversations = [turns(("user", f"What is port {n}?"), ANSWER) for n in range(40)]
    words = ["ghost_jax.train", "--config=configs/chat_v5.py:nano", f"--base={tiny_run.base}", *set_all(TINY)]
    words += set_all({"data.sources": f"{notes},embedded", "data.chats.mine": lines(own, *conversations)})
    words += set_all({"data.questions.quiz": lines(tmp_path / "q.jsonl", *quiz(40))})
    ghost(*words, f"--workdir={run}")
    held_out = run / "questions-quiz.jsonl"
    ghost.here("evals.ctibench", f"--workdir={run}", f"--items={held_out}")
    assert read_json(run / "evals" / "questions-quiz.json")["n"] == len(read_items(held_out)) >= 8
    item = read_items(held_out).items[0]
    question = f"{item.question} Choose one of the following services: {', '.join(item.options)}."
    lines(own, *conversations, turns(("user", question), ("assistant", item.options[item.answer])))
    assert f"item {item.id}" in ghost.refused(*words, f"--workdir={tmp_path / 'other'}")


def test_files_below_a_folder_are_read_also_behind_links_and_others_are_named(tmp_path):
    notes = tmp_path / "notes"
    lines(notes / "E.JSONL.GZ", gzip.compress(b'{"text": "one"}'), end=b"")
    lines(notes / "page.html", b"<p>x</p>")
    lines(tmp_path / "other" / "deep" / "b.md", b"two")
    (notes / "sub").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "loop").symlink_to(notes)
    assert [each.text for each in documents(notes)] == ["one", "two"]
    found, said = corpus.locate([str(notes)], None, print, stand_in=True)
    assert any("page.html" in note for note in said)
    table = found[0].identity()
    assert (table["file"], table["sha256"]) == ("E.JSONL.GZ", artifact_cache.sha256_of(notes / "E.JSONL.GZ"))


def test_names_that_are_not_utf8_are_told_apart_and_written_to_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = os.fsencode(tmp_path / "notes")
    os.mkdir(folder)
    for name in (b"caf\xe9.md", b"caf\xe8.md"):
        with open(folder + b"/" + name, "w") as file:
            file.write(f"About {name}.")
    assert len(documents(tmp_path / "notes")) == 2
    os.mkdir(tables := os.fsencode(tmp_path / "tables"))
    with open(tables + b"/caf\xe9.jsonl", "w") as file:
        file.write('{"text": "one"}')
    inputs, _ = corpus.locate([str(tmp_path / "tables")], None, print, stand_in=True)
    assert corpus.corpus_store(inputs, print) == corpus.corpus_store(inputs, print)


def test_rows_of_two_files_with_one_id_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "ab":
        lines(tmp_path / "notes" / f"{name}.jsonl", {"id": 1, "text": f"This is the text of {name}."})
    with pytest.raises(UserError, match=r"b\.jsonl.* id 1"):
        corpus.corpus_store(corpus.locate([str(tmp_path / "notes")], None, print, stand_in=True)[0], print)


def test_files_are_read_by_processes_of_which_none_may_be_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for name in "ab":
        lines(tmp_path / "book" / f"{name}.jsonl", {"text": f"This is the text of {name}."})
    store = corpus.book_corpus(None, lambda line: None, f"{tmp_path / 'book'}, ")  # a function that no process is given
    assert artifact_cache.manifest(store).documents == {"book": 2}
    monkeypatch.setattr(corpus, "part_store", signal.raise_signal)
    with pytest.raises(UserError, match="killed"):
        corpus.part_stores([np.int64(signal.SIGKILL)] * 2, print)  # in place of inputs, as they have a size too


def test_of_several_processes_one_writes_a_dataset_of_the_library(tmp_path, monkeypatch):
    written = []

    def write(path: Path) -> None:
        time.sleep(0.1)
        written.append(path.write_bytes(b"rows"))

    found = SimpleNamespace(_fingerprint="f", to_parquet=write)
    library = SimpleNamespace(disable_progress_bars=print, load_dataset=lambda *_, **__: found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", library)
    with ThreadPool(2) as pool:
        first, second = pool.map(rows.located, ["hf:a", "hf:a:train"], chunksize=1)
    assert first == second
    assert (first.read_bytes(), len(written)) == (b"rows", 1)


def test_the_split_of_a_conversation_is_drawn_from_all_words_of_its_first_turn(tmp_path):
    asked = [{"instruction": "Read it. Name it.", "input": f"Alert {n}", "output": "ok"} for n in range(200)]
    of_split = Counter(each.split for each in chats.read("mine", lines(tmp_path / "a.jsonl", *asked)))
    assert of_split.keys() == {"train", "validation"}
    assert 5 < of_split["validation"] < 40
    spelled = [turns(("user", each), ANSWER) for n in range(20) for each in (f"What is {n}?", f" what\nIS {n}?")]
    splits = [each.split for each in chats.read("mine", lines(tmp_path / "b.jsonl", *spelled))]
    assert splits[::2] == splits[1::2]


def test_null_is_the_absence_of_a_key_in_a_conversation(tmp_path):
    found = [turns((*ASKED, None), (*ANSWER, None)), {"messages": None, "instruction": "Hi", "output": "Yes"}]
    read = chats.read("mine", lines(tmp_path / "a.jsonl", *found))
    assert [[(turn.content, turn.train) for turn in each.messages] for each in read] == [
        [(ASKED[1], True), (ANSWER[1], True)],
        [("Hi", True), ("Yes", True)],
    ]


def test_questions_that_are_trained_on_have_their_options_shifted(tmp_path):
    asked = quiz(40)
    found = questions.read("quiz", lines(tmp_path / "q.jsonl", *asked), "topic", 0)
    kept = [each.options == tuple(given["options"].values()) for each, given in zip(found, asked, strict=True)]
    assert 0 < sum(kept) < len(kept)


def test_a_held_out_question_in_the_text_of_the_base_is_found_before_that_is_trained(ghost, tmp_path):
    asked = quiz(40)
    texts = [{"text": f"{row['question']} {', '.join(row['options'].values())}"} for row in asked]
    text = lines(tmp_path / "t.jsonl", *texts, {"text": "A port is a number."})
    words = both_stages(TINY | {"data.sources": text})
    words += set_all(NO_TASK | {"data.questions.quiz": lines(tmp_path / "q.jsonl", *asked)})
    command = ["ghost_jax.train", "--config=configs/chat_v5.py:nano", *words, f"--workdir={tmp_path / 'runs' / 'mine'}"]
    assert "questions-quiz.jsonl: the data hold" in ghost.refused_here(*command)
    lines(text, {"text": "A port is a number."})
    assert "heldout.jsonl is empty" in ghost.refused_here(*command)
    assert not (tmp_path / "runs").exists()


def test_a_file_whose_conversations_are_all_for_validation_is_refused_by_its_own_name():
    config = ConfigDict({"data": {"chats": {"mine": "own.jsonl"}}})
    with pytest.raises(UserError, match=r"data\.chats\.mine is for validation"):
        prepare._refuse_empty(config, Path(), ["mine"])
