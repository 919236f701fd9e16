"""A user's own text in `data.sources` and own conversations in `data.chats`: read, named, refused."""

import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data.own import chats, rows, text
from ghost_jax.data.storage import files
from ghost_jax.data.storage.schema import split_of
from tests.conftest import TINY, set_all
from tests.test_config import CHAT, parse

ROWS = [
    {"text": "Ü is a letter.\r\nIt has dots.", "id": "u-1", "title": "Ü", "url": "https://a.example", "license": "CC0"},
    {"text": "A second document, long enough to be one."},
]


def messages(*turns: tuple, **more) -> dict:
    return {"messages": [{"role": role, "content": content} | dict(*rest) for role, content, *rest in turns], **more}


PAIR = (("user", "What is a port?"), ("assistant", "A number."))


def lines(path: Path, *found: object, mark: bytes = b"", end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode() for each in found]
    path.write_bytes(mark + b"".join(line + end for line in written))
    return path


def read(entry: object) -> list:
    return list(text.read(*text.find(str(entry))))


# ---- Text ----


def table(path: Path) -> Path:
    """Writes `ROWS` in the format of a path's suffix, compressed by its last one."""
    if ".parquet" in path.name:
        parquet.write_table(
            pyarrow.Table.from_pylist(ROWS, pyarrow.schema([(k, pyarrow.string()) for k in ROWS[0]])), path
        )
    elif ".csv" in path.name:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, [*ROWS[0], "other"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        lines(path, *ROWS, mark=b"\xef\xbb\xbf", end=b"\r\n")
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(path.read_bytes())
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.xz", "a.parquet.gz"])
def test_a_table_gives_its_documents_with_what_they_state(tmp_path, name):
    folder = tmp_path / "meine Dateien (ü)"
    folder.mkdir()
    stated, bare = read(table(folder / name))
    assert (stated.id, stated.source, stated.title, stated.url, stated.license) == (
        "u-1",
        "a",
        "Ü",
        "https://a.example",
        "CC0",
    )
    assert stated.text == "Ü is a letter.\nIt has dots."
    assert (bare.source, bare.title, bare.url, bare.license) == ("a", "", "", "")
    assert bare.id.startswith(f"{name.removesuffix('.gz').removesuffix('.xz')}/")


def test_a_folder_and_a_pattern_give_a_document_a_page(tmp_path):
    folder = tmp_path / "my notes"
    pages = {
        "a.md": "# Ports #\n\nA port.",
        "sub/b.txt.gz": "# not a heading",
        "c.md": "```\n# code\n```\nTitle\n===\nx",
    }
    pages |= {".git/d.md": "hidden", "empty.md": " \n", "e.pdf": "not read"}
    for name, content in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    found = {each.id: (each.title, each.text) for each in read(folder)}
    assert found == {
        "my_notes/a.md": ("Ports", "A port."),
        "my_notes/c.md": ("Title", pages["c.md"]),
        "my_notes/sub/b.txt": ("b", "# not a heading"),
    }
    assert [each.id for each in read(f"{folder}/*.md")] == ["my_notes/a.md", "my_notes/c.md"]


BAD_TEXT = {
    "missing": [{"text": "one"}, {"body": "two"}],
    "not a string": [{"text": "one"}, {"text": 2}],
    "blank": [{"text": "one"}, {"text": " "}],
    "not UTF-8": [{"text": "one"}, '{"text": "ü"}'.encode("latin-1")],
    "not JSON": [{"text": "one"}, b"{"],
    "a list": [{"text": "one"}, ["two"]],
    "a second id": [{"text": "one", "id": "x"}, {"text": "two", "id": "x"}],
    "a url": [{"text": "one"}, {"text": "two", "url": ["a"]}],
    "too long": [{"text": "one"}, {"text": "x" * 300}],
}


@pytest.mark.parametrize("fault", BAD_TEXT)
def test_a_bad_row_of_text_is_refused_with_its_file_and_line(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "MAX_LINE", 200)
    path = lines(tmp_path / "ä b.jsonl", *BAD_TEXT[fault])
    with pytest.raises(UserError) as caught:
        read(path)
    assert f"{path}, line 2" in str(caught.value)


def test_bad_tables_and_missing_files_are_refused_with_their_paths(tmp_path):
    (tmp_path / "a.csv").write_text('text,id\n"one",1\ntwo\n')
    (tmp_path / "b.csv").write_text('text\n"one\n')
    (tmp_path / "c.parquet").write_text("no such thing")
    (tmp_path / "d.pdf").write_text("x")
    (tmp_path / "e.txt").write_bytes("ü".encode("utf-16"))
    (tmp_path / "none").mkdir()
    for name in ("a.csv", "b.csv", "c.parquet", "d.pdf", "e.txt", "none", "absent.md", "*.jsonl"):
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


# ---- Conversations ----


def of(path: Path) -> list[tuple]:
    return [[(turn.role, turn.content, turn.train) for turn in each.messages] for each in chats.read("mine", path)]


def test_each_form_of_conversation_is_read(tmp_path):
    share = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yes"},
    ]
    found = [
        messages(("system", "Be brief."), *PAIR, ("user", "And?"), ("assistant", "No.", {"train": False}), id=7),
        {"conversations": share},
        {"instruction": "Add.", "input": "1 + 1", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "  Hi"},
    ]
    path = lines(tmp_path / "ü b.jsonl", *found, mark=b"\xef\xbb\xbf", end=b"\r\n\r\n")
    assert of(path) == [
        [
            ("user", "Be brief.\n\nWhat is a port?", True),
            ("assistant", "A number.", True),
            ("user", "And?", True),
            ("assistant", "No.", False),
        ],
        [("user", "Be brief.\n\nHi", True), ("assistant", "Yes", True)],
        [("user", "Add.\n\n1 + 1", True), ("assistant", "2", True)],
        [("user", "Greet.", True), ("assistant", "  Hi", True)],
    ]
    read = list(chats.read("mine", path))
    assert [each.id for each in read] == ["7", "mine/3", "mine/5", "mine/7"]
    assert [each.split for each in read] == [
        split_of(asked) for asked in ("What is a port?", "Hi", "Add.\n\n1 + 1", "Greet.")
    ]


BAD_CHATS = {
    "no key": {"text": "a"},
    "no turn": {"messages": []},
    "no content": {"messages": [{"role": "user"}]},
    "parts": messages(("user", [{"type": "text"}])),
    "a role": messages(("tool", "a"), *PAIR),
    "a number": {"instruction": 1, "output": "a"},
    "no output": {"instruction": "a"},
    "no answer": messages(("user", "a")),
    "two of the user": messages(("user", "a"), *PAIR),
    "a late system turn": messages(*PAIR, ("system", "a"), *PAIR),
    "the assistant first": messages(("assistant", "a")),
    "system alone": messages(("system", "a")),
    "a flag": messages(PAIR[0], ("assistant", "a", {"train": "no"})),
    "a learnt question": messages((*PAIR[0], {"train": True}), PAIR[1]),
    "nothing learnt": messages(PAIR[0], ("assistant", "a", {"train": False})),
    "a second id": messages(*PAIR, id="x"),
    "not UTF-8": b'{"messages": "\xff"}',
}


@pytest.mark.parametrize("fault", BAD_CHATS)
def test_a_bad_conversation_is_refused_with_its_file_and_line(tmp_path, fault):
    path = lines(tmp_path / "c.jsonl", messages(*PAIR, id="x"), BAD_CHATS[fault])
    with pytest.raises(UserError) as caught:
        of(path)
    assert f"{path}, line 2" in str(caught.value)


# ---- Names ----


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.data.chats.qa=a.jsonl"],
        ["--config.data.chats.mine=a.jsonl", "--config.data.chats.mine=b.jsonl"],
        ["--config.data.mixture.mine=1"],
        ["--config.data.chats.my-own=a.jsonl"],
        ["--config.data.sources=notes"],
    ],
)
def test_a_name_that_is_taken_or_unknown_is_a_wrong_command_line(flags):
    with pytest.raises(UsageError) as caught:
        parse(f"--config={CHAT}:nano", *flags)
    assert all(
        flag.partition("=")[0].removeprefix("--config.").rpartition(".")[0] in str(caught.value) for flag in flags
    )


def test_a_chats_file_enters_the_mixture_under_its_name():
    path = "--config.data.chats.mine=a b.jsonl"
    config, _ = parse(f"--config={CHAT}:nano", "--config.data.mixture.mine=3", path, "--config.keep_best=val_loss_mine")
    assert (config.data.mixture.mine, config.data.chats.mine, config.is_locked) == (3.0, "a b.jsonl", True)
    assert parse(f"--config={CHAT}:nano", path)[0].data.mixture.mine == 1.0


def test_both_are_prepared_and_shown_and_nothing_of_a_bad_file_is_kept(ghost, tmp_path):
    notes, own = tmp_path / "notes", tmp_path / "own.jsonl"
    for number in range(60):
        lines(notes / f"{number}.md", f"# Port {number}\n\nThe port {number} has service {number * 7}.".encode())
    lines(notes / "t.jsonl", ROWS[0])
    asked = [messages(("user", f"What is port {n}?"), ("assistant", "<|ghost_end|> it"), id=f"c{n}") for n in range(40)]
    lines(own, *asked)
    words = ["--config=configs/chat_v5.py:nano", *set_all(TINY | {f"base.{key}": value for key, value in TINY.items()})]
    words += [f"--config{base}.data.sources={notes},embedded" for base in ("", ".base")]
    words += [*set_all(dict.fromkeys((f"data.mixture.{name}" for name in ("qa", "mcq", "cot", "small_talk")), 0))]
    words += [f"--config.data.chats.mine={own}", "--config.data.mixture.mine=3"]
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert "mine " in ghost.here("ghost_jax.data.prepare", *words, env=env).stdout
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("stores/*/manifest.json")]
    corpus = next(each for each in manifests if each["kind"] == "corpus" and "notes" in each["documents"])
    assert corpus["documents"]["notes"] == 61
    assert corpus["licenses"] == {"notes": "CC0", "embedded": "Apache-2.0"}
    counts = next(each for each in manifests if each["kind"] == "mine")["datasets"]["mine"]
    assert sum(each["records"] for each in counts.values()) == 40
    shown = ghost.here("ghost_jax.data.show", *words, "-n", "1", env=env).stdout
    answer = shown.partition("⟦")[2].partition("⟧")[0]
    assert answer.replace("│", "") == "<|ghost_end|> it<|ghost_end|>"
    assert answer.endswith("│<|ghost_end|>")
    assert "│<|ghost_end|>│" not in answer, "a role token in the content is text"
    lines(own, *asked, {"messages": 3})
    assert f"{own}, line 41" in ghost.refused_here("ghost_jax.data.prepare", *words, env=env)
    same = [f"--config.data.sources={notes},{tmp_path / 'other' / 'notes.md'}", *words[:1]]
    lines(tmp_path / "other" / "notes.md", b"text")
    message = ghost.refused_here("ghost_jax.data.prepare", *words, same[0], env=env)
    assert str(notes) in message
    assert "other/notes.md" in message
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_parquet_without_its_package_names_it(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pyarrow"):
        list(rows.read(path))
