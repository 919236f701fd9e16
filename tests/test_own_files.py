"""A user's own text in `data.sources` and own conversations in `data.chats`: read, named, refused."""

import csv
import gzip
import json
import lzma
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data import corpus
from ghost_jax.data.builders import pretrain
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.own import chats, questions, text
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import split_of
from tests.conftest import TINY, set_all
from tests.test_config import CHAT, parse

URL = "https://a.example"
FULL = {"text": "Ü is a letter.\r\nIt has dots.", "id": "u-1", "title": "Ü", "url": URL, "license": "CC0"}
ROWS = [FULL, {"text": "A second document, long enough to be one."}]
MARK = b"\xef\xbb\xbf"
NO_TASK = dict.fromkeys((f"data.mixture.{name}" for name in ("qa", "mcq", "cot", "small_talk")), 0)


def turns(*given: tuple, **more) -> dict:
    """Returns a row of (role, content) or (role, content, train)."""
    return {"messages": [dict(zip(("role", "content", "train"), turn, strict=False)) for turn in given], **more}


ASKED, ANSWER = ("user", "What is a port?"), ("assistant", "A number.")


def lines(path: Path, *found: object, mark: bytes = b"", end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode() for each in found]
    path.write_bytes(mark + b"".join(line + end for line in written))
    return path


def table(path: Path) -> Path:
    """Writes `ROWS` in the format of a path's suffixes."""
    if ".parquet" in path.name:
        schema = pyarrow.schema([(key, pyarrow.string()) for key in FULL])
        parquet.write_table(pyarrow.Table.from_pylist(ROWS, schema), path)
    elif ".csv" in path.name:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, [*FULL, "other"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        lines(path, *ROWS, mark=MARK, end=b"\r\n")
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(path.read_bytes()))
    return path


def documents(entry: object) -> list:
    return list(text.read(*text.find(str(entry))))


def refusal(read, *given: object) -> str:
    with pytest.raises(UserError) as caught:
        list(read(*given))
    return str(caught.value)


# ---- Text ----


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.xz", "a.parquet.gz"])
def test_a_table_gives_its_documents_with_what_they_state(tmp_path, name):
    (folder := tmp_path / "meine Dateien (ü)").mkdir()
    full, bare = documents(table(folder / name))
    assert (full.id, full.source, full.title, full.url, full.license) == ("u-1", "a", "Ü", URL, "CC0")
    assert full.text == "Ü is a letter.\nIt has dots."
    assert (bare.source, bare.title, bare.url, bare.license) == ("a", "", "", "")
    assert bare.id.startswith(f"{name.removesuffix('.gz').removesuffix('.xz')}/")


def test_a_folder_and_a_pattern_give_a_document_a_page(tmp_path):
    folder = tmp_path / "my notes"
    pages = {"a.md": f"# C#\n\n# A{' ' * 10**6}port.", "c.md": "```\n# code\n```\n## Title\nx", "empty.md": " \n"}
    for name, content in (pages | {".git/d.md": "hidden", "e.pdf": "not read"}).items():
        lines(folder / name, content.encode(), mark=MARK)
    lines(folder / "sub" / "b.txt.gz", gzip.compress(b"# not a heading"), end=b"")
    found = {each.id: (each.title, each.text) for each in documents(folder)}
    assert found == {
        "my_notes/a.md": ("C#", pages["a.md"][6:]),
        "my_notes/c.md": ("Title", pages["c.md"]),
        "my_notes/sub/b.txt": ("b", "# not a heading"),
    }
    assert [each.id for each in documents(f"{folder}/*.md")] == ["my_notes/a.md", "my_notes/c.md"]


BAD_TEXT = [{"body": "two"}, {"text": 2}, {"text": " "}, '{"text": "ü"}'.encode("latin-1"), b"{", ["two"]]
BAD_TEXT += [{"text": "two", "id": "x"}, {"text": "two", "url": ["a"]}, {"text": "x" * 300}]


@pytest.mark.parametrize("fault", BAD_TEXT)
def test_a_bad_row_of_text_is_refused_with_its_file_and_line(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "MAX_LINE", 200)
    path = lines(tmp_path / "ä b.jsonl", {"text": "one", "id": "x"}, fault)
    assert f"{path}, line 2" in refusal(documents, path)


def test_bad_tables_and_missing_files_are_refused_with_their_paths(tmp_path):
    content = {"a.csv": b'text,id\n"one",1\ntwo\n', "b.csv": b'text\n"one\n', "c.parquet": b"none", "d.pdf": b"x"}
    for name, each in (content | {"e.txt": "ü".encode("utf-16"), "f.csv": b"body\nx\n", "none/.x": b""}).items():
        lines(tmp_path / name, each, end=b"")
    for name in (*content, "e.txt", "f.csv", "none", "absent.md", "*.jsonl"):
        assert name in refusal(documents, tmp_path / name)


def test_the_key_of_the_text_is_named_behind_the_path(tmp_path):
    path = lines(tmp_path / "a b.jsonl", {"body": "one"}, {"text": "two"})
    assert f'{path}, line 2: there is no "body"' in refusal(documents, f"{path}#body")
    (tmp_path / "t.csv").write_text("text,body\nx,one\n")
    (found,) = documents(tmp_path / "t.csv#body")
    assert (found.text, pretrain.text_of(found)) == ("one", "one")
    assert [each.text for each in documents(lines(tmp_path / "c#" / "d.md", b"# Title"))] == ["Title"]
    (entry,) = corpus.locate([f"{tmp_path}/t.csv#body"], None, print, stand_in=True).files
    assert entry.identity()["key"] == "body"


def test_a_dataset_of_the_library_is_read_from_disk(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "ü own"
    lines(folder / "dev.jsonl", *ROWS)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: dev, path: dev.jsonl}\n---\n"
    )
    entry = f"hf:{folder}:dev"
    full, bare = documents(entry)
    assert (full.id, full.title, full.url, full.license, bare.text) == ("u-1", "Ü", URL, "CC0", ROWS[1]["text"])
    assert bare.source == "own"
    assert "dev" in refusal(documents, f"hf:{folder}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(documents, entry)


# ---- Conversations ----

SYSTEM = ("system", "Be brief."), ("system", "In English.")


def test_each_form_of_conversation_is_read(tmp_path):
    share = [SYSTEM[0], ("human", "Hi"), ("gpt", "Yes")]
    found = [
        turns(*SYSTEM, ASKED, ANSWER, ("user", "And?"), ("assistant", "No.", False), id=7),
        {"conversations": [{"from": role, "value": content} for role, content in share]},
        {"instruction": "Add.", "input": "1 + 1", "output": "  2"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
    ]
    read = list(chats.read("mine", lines(tmp_path / "ü b.jsonl", *found, mark=MARK, end=b"\r\n\r\n")))
    assert [[turn.content for turn in each.messages] for each in read] == [
        ["Be brief.\n\nIn English.", "What is a port?", "A number.", "And?", "No."],
        *(["Be brief.", "Hi", "Yes"], ["Add.\n\n1 + 1", "  2"], ["Greet.", "Hi"]),
    ]
    assert [each.messages[0].role for each in read] == ["system", "system", "user", "user"]
    as_list = tmp_path / "list.json"
    as_list.write_text(json.dumps(found), encoding="utf-8-sig")
    assert [each.messages for each in chats.read("mine", as_list)] == [each.messages for each in read]
    assert {tuple(turn.role for turn in each.messages[-2:]) for each in read} == {("user", "assistant")}
    assert [turn.train for turn in read[0].messages] == [True, True, True, True, False]
    assert [each.id for each in read] == ["7", "mine/3", "mine/5", "mine/7"]
    assert [each.split for each in read] == [split_of(each) for each in (ASKED[1], "Hi", "Add.\n\n1 + 1", "Greet.")]


BAD_CHATS = [{"text": "a"}, {"messages": []}, {"messages": [{"role": "user"}]}, b'{"messages": "\xff"}']
BAD_CHATS += [{"instruction": 1, "output": "a"}, {"instruction": "a"}, turns(ASKED, ANSWER, id="x")]
BAD_CHATS += [turns(("user", [{"type": "text"}]), ANSWER), turns(("tool", "a"), ASKED, ANSWER)]
BAD_CHATS += [turns(ASKED), turns(ASKED, ASKED, ANSWER), turns(ASKED, ANSWER, ("system", "a")), turns(ANSWER)]
BAD_CHATS += [turns((*ASKED, True), ANSWER), *(turns(ASKED, (*ANSWER, flag)) for flag in ("no", False))]


@pytest.mark.parametrize("fault", BAD_CHATS)
def test_a_bad_conversation_is_refused_with_its_file_and_line(tmp_path, fault):
    path = lines(tmp_path / "c.jsonl", turns(ASKED, ANSWER, id="x"), fault)
    assert f"{path}, line 2" in refusal(chats.read, "mine", path)


def test_a_bad_list_of_conversations_is_refused_with_its_place(tmp_path):
    path = lines(tmp_path / "c.json", [turns(ASKED, ANSWER), 3])
    assert f"{path}, item 2" in refusal(chats.read, "mine", path)
    assert str(path) in refusal(chats.read, "mine", lines(path, "one"))


# ---- Questions ----


def quiz(count: int = 20, **more) -> list[dict]:
    """Returns questions with three options; two in a row have one topic, every fifth has the options of the first."""
    texts = [[f"{x} of {n % 5 and n}" for x in "xyz"] for n in range(count)]
    rows = [{"question": f"What is {n}?", "options": dict(zip("ABC", of, strict=True))} for n, of in enumerate(texts)]
    return [row | {"answer": "ABC"[n % 3], "topic": n // 2} | more for n, row in enumerate(rows)]


def csv_of(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", *"ABCD", "Answer", "topic"])
        writer.writerows(
            [each["question"], *each["options"].values(), "none", each["answer"], each["topic"]] for each in rows
        )
    return path


@pytest.mark.parametrize("name", ["my quiz ü.jsonl", "quiz.csv"])
def test_questions_that_depend_on_each_other_are_in_one_split(tmp_path, name):
    path = csv_of(tmp_path / name, quiz()) if name.endswith(".csv") else lines(tmp_path / name, *quiz(), mark=MARK)
    found = questions.read("quiz", path, "", seed=0)
    of_split = Counter(each.split for each in found)
    assert of_split["test"] >= 4
    assert of_split["validation"] >= 2
    assert of_split["train"] >= 10
    assert len({each.split for each in found[::5]}) == 1, "they have the same options"
    assert {each.options[each.answer] for each in found} == {f"{'xyz'[n % 3]} of {n % 5 and n}" for n in range(20)}
    assert len({each.letter for each in found if each.split == "train"}) > 1
    assert [each.options for each in found if each.split == "test"] == [
        tuple(quiz()[n]["options"].values()) + ("none",) * name.endswith(".csv")
        for n in range(20)
        if found[n].split == "test"
    ]
    by_topic = questions.read("quiz", path, "topic", seed=0)
    assert all(one.split == other.split for one, other in zip(by_topic[::2], by_topic[1::2], strict=True))
    assert by_topic[3].url == "1"
    same = [row | {"question": "What is the same?"} for row in quiz(2)]
    repeated = questions.read("quiz", lines(tmp_path / "r.jsonl", *quiz(), *same), "", seed=0)
    assert repeated[-2].split == repeated[-1].split


BAD_QUIZ = [{"options": {}}, {"question": "a", "options": {"A": "x"}, "answer": "A"}, {**quiz(1)[0], "answer": "D"}]
BAD_QUIZ += [b"{", '{"question": "ü"}'.encode("latin-1"), {**quiz(1)[0], "topic": None}, {**quiz(1)[0], "question": 3}]


@pytest.mark.parametrize("fault", BAD_QUIZ)
def test_a_bad_question_is_refused_with_its_file_and_line(tmp_path, fault):
    path = lines(tmp_path / "ä b.jsonl", *quiz(1), fault)
    assert f"{path}, line 2" in refusal(questions.read, "quiz", path, "topic", 0)


def test_questions_that_cannot_be_split_are_refused(tmp_path):
    one_topic = lines(tmp_path / "one.jsonl", *quiz(topic="same"))
    assert "data.question_group" in refusal(questions.read, "quiz", one_topic, "topic", 0)
    assert "absent" in refusal(questions.read, "quiz", one_topic, "absent", 0)


def test_ctibench_is_refused_as_training_data(ghost_data):
    assert "CTIBench" in refusal(questions.read, "quiz", ghost_data / "ctibench" / "cti-mcq.tsv", "", 0)


# ---- Names ----


@pytest.mark.parametrize(
    ("key", "values"),
    [("chats.qa", "a"), ("chats.mine", "ab"), ("mixture.mine", "1"), ("chats.my-own", "a"), ("questions.qa", "a")],
)
def test_a_name_that_is_taken_or_unknown_is_a_wrong_command_line(key, values):
    with pytest.raises(UsageError) as caught:
        parse(f"--config={CHAT}:nano", *(f"--config.data.{key}={value}" for value in values))
    assert f"data.{key.partition('.')[0]}" in str(caught.value)


def test_one_name_for_two_files_is_a_wrong_command_line():
    with pytest.raises(UsageError, match="mine"):
        parse(f"--config={CHAT}:nano", "--config.data.chats.mine=a", "--config.data.questions.mine=b")


def test_a_chats_file_enters_the_mixture_under_its_name():
    path = "--config.data.chats.mine=a b.jsonl"
    config, _ = parse(f"--config={CHAT}:nano", "--config.data.mixture.mine=3", path, "--config.keep_best=val_loss_mine")
    assert (config.data.mixture.mine, config.data.chats.mine, config.is_locked) == (3.0, "a b.jsonl", True)
    assert parse(f"--config={CHAT}:nano", path)[0].data.mixture.mine == 1.0
    letters = ["--config.data.questions.quiz=q.csv", "--config.objective.letter=1", "--config.data.mixture.mcq=0"]
    assert parse(f"--config={CHAT}:nano", "--config.data.mixture.cot=0", *letters)[0].data.mixture.quiz == 1.0


def test_both_are_prepared_and_shown_and_nothing_of_a_bad_file_is_kept(ghost, tmp_path):
    notes, own, env = tmp_path / "notes", tmp_path / "own.jsonl", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for n in range(60):
        lines(notes / f"{n}.md", f"# Port {n}\n\nThe port {n} has service {n * 7}.".encode())
    lines(notes / "t.jsonl", FULL)
    asked = [turns(("user", f"What is port {n}?"), ("assistant", "<|ghost_end|> it"), id=f"c{n}") for n in range(40)]
    lines(own, *asked)
    words = ["--config=configs/chat_v5.py:nano", *set_all(TINY | {f"base.{key}": value for key, value in TINY.items()})]
    words += set_all({f"{base}data.sources": f"{notes},embedded" for base in ("", "base.")} | NO_TASK)
    asked_of = lines(tmp_path / "quiz.jsonl", *quiz())
    words += set_all({"data.chats.mine": own, "data.mixture.mine": 3, "data.questions.quiz": asked_of})
    shown = ghost.here("ghost_jax.data.show", *words, "-n", "1", env=env).stdout
    answer = shown.partition("⟦")[2].partition("⟧")[0]
    assert answer.replace("│", "") == "<|ghost_end|> it<|ghost_end|>"
    assert answer.endswith("│<|ghost_end|>")
    assert "<|ghost_end|>│ it" not in answer, "a role token in a content is text"
    found = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("stores/*/manifest.json")]
    (corpus,) = [each for each in found if each["kind"] == "corpus"]
    assert corpus["documents"]["notes"] == 61
    assert corpus["licenses"] == {"notes": "CC0, not named", "embedded": "Apache-2.0"}
    (counts,) = [each["datasets"]["mine"] for each in found if each["kind"] == "mine"]
    assert sum(each["records"] for each in counts.values()) == 40
    (held_out,) = (tmp_path / "cache").rglob("stores/quiz-*/items-test.jsonl")
    assert 4 <= len(read_items(held_out)) <= 8
    lines(own, *asked, {"messages": 3})
    assert f"{own}, line 41" in ghost.refused_here("ghost_jax.data.prepare", *words, env=env)
    other = lines(tmp_path / "other" / "notes.md", b"text")
    words.append(f"--config.data.sources={notes},{other}")
    message = ghost.refused_here("ghost_jax.data.prepare", *words, env=env)
    assert all(str(path) in message for path in (notes, other))
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.slow
def test_own_files_become_a_scored_and_exported_run_and_a_held_out_question_in_the_chats_stops_it(
    ghost, tiny_run, tmp_path
):
    notes, own, asked = tmp_path / "my notes", tmp_path / "chats.jsonl", lines(tmp_path / "q.jsonl", *quiz(40))
    lines(notes / "a.md", b"# Ports", b"A port is a number.")
    conversations = [turns(("user", f"What is port {n}?"), ANSWER) for n in range(40)]
    lines(own, *conversations)
    words = ["ghost_jax.train", "--config=configs/chat_v5.py:nano", f"--base={tiny_run.base}", *set_all(TINY)]
    words += set_all({"data.sources": f"{notes},embedded", "data.chats.mine": own, "data.questions.quiz": asked})
    run = tmp_path / "mine"
    ghost(*words, f"--workdir={run}")
    held_out = run / "questions-quiz.jsonl"
    ghost.here("evals.ctibench", f"--workdir={run}", f"--items={held_out}")
    report = json.loads((run / "evals" / "questions-quiz.json").read_text())
    assert report["n"] == len(read_items(held_out)) >= 8
    ghost.here("ghost_jax.export", f"--workdir={run}", f"--out={tmp_path / 'hf'}")
    assert "| quiz | x1 |" in (tmp_path / "hf" / "README.md").read_text()
    item = read_items(held_out).items[0]
    question = f"{item.question} Choose one of the following services: {', '.join(item.options)}."
    lines(own, *conversations, turns(("user", question), ("assistant", item.options[item.answer])))
    assert f"item {item.id}" in ghost.refused(*words, f"--workdir={tmp_path / 'other'}")
