"""evals/tasks/facts.py and reading.py: held-out facts asked of a chat run, closed book and behind passages."""

import json
from io import StringIO

import pytest
from rich.console import Console

from evals.items.answers import Answers
from evals.tasks import facts, mcq, reading
from ghost_jax.core.errors import UserError
from ghost_jax.data.storage.array_record import open_examples
from ghost_jax.runs import evaluation
from ghost_jax.text.mcq_format import LETTERS
from tests.conftest import set_all, tiny_chat
from tests.test_reader import ATTACK, HASH, small_reader


@pytest.mark.slow
def test_a_run_is_scored_on_facts_that_none_of_its_training_records_asks(ghost, tiny_run, tmp_path):
    workdir = tiny_run.beside_base(tmp_path)
    (tmp_path / "chat_known.py").write_text(  # chat_facts on the base that is there
        "from configs import chat_v5\n\n\ndef get_config(preset=''):\n    c = chat_v5.get_config(preset)\n"
        "    c.evals = {'facts': {'batch_size': 4}}\n    return c\n"
    )
    words = tiny_chat(workdir, *set_all({"data.mixture.fact_rank": 1.0, "objective.ranking": 1.0}))
    words[1] = f"--config={tmp_path / 'chat_known.py'}:nano"
    ghost(*words)
    report = json.loads((workdir / "evals" / "facts.json").read_text())
    items = [json.loads(line) for line in (workdir / mcq.FACTS).read_text().splitlines()]
    assert report["n"] == len(items) > 20
    assert set(report["readings"]) == {"letters", "cloze", "differs"}
    assert {"ranked", "pmi"} <= report["cloze"].keys()
    for name in ("longest", "shortest", "option_popularity", "position_length_popularity", "always_C"):
        assert report["baselines_over_orders"][name] == pytest.approx(0.25, abs=0.02), name
    assert not (workdir / "evals" / "ctibench.json").exists()
    names = json.loads((workdir / "data.json").read_text())["stores"]
    for name in ("fact_mcq", "fact_rank"):
        rows = open_examples(ghost.cache / "ghost_jax" / "stores" / names[name], name, "train")
        trained = {row["id"].decode().partition("/ABCD")[0] for row in rows}
        assert trained
        assert not {item["id"] for item in items} & trained


def test_a_run_without_questions_is_refused(tmp_path):
    facts.check_data(tmp_path, None)  # as of a base, which has no file of questions
    (tmp_path / mcq.FACTS).write_text("")
    with pytest.raises(UserError, match=rf"{mcq.FACTS}.*data.sources"):
        facts.check_data(tmp_path, None)
    with pytest.raises(UserError, match=mcq.FACTS):
        facts.evaluate_run(None, None, tmp_path, None, context=64, batch_size=2)


def test_reading_asks_about_pages_of_the_corpus_and_the_oracle_is_always_among_what_is_read(tmp_path, monkeypatch):
    shared = {"options": dict(zip(LETTERS, HASH.options, strict=False)), "answer": "B"}
    of_others = "Are there malicious links, attachments, crashes, exits or examples in C++?"
    page = f"{ATTACK}/T1550/002"
    asked = [
        ("named", HASH.question, page),
        ("of others", of_others, page),
        ("no page", HASH.question, "https://example.org"),
    ]
    lines = [json.dumps(shared | {"id": name, "question": text, "url": url}) for name, text, url in asked]
    (tmp_path / mcq.FACTS).write_text("\n".join(lines))
    config = {"stage": "chat", "model": {}, "data": {"layout": "cloze"}, "optim": {}, "steps": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def put(items, orders, *, passages, doing):
        """Right where a passage has the gold option."""
        scores = []
        for item, read in zip(items, passages, strict=True):
            known = any(item.options[item.answer] in line for line in read)
            scores.append([float((k == item.answer) == known) for k in range(4)])
        return Answers.from_options(orders, scores), sum(map(bool, passages))

    monkeypatch.setattr(reading, "index_of", lambda _: small_reader().index)
    monkeypatch.setattr(reading, "putting", lambda *_, **__: put)
    report = reading.evaluate_run(None, None, tmp_path, None, context=64, batch_size=2)
    assert (report.n, report.oracle_found, report.layout) == (2, 0.5, "cloze")
    assert (report.closed.accuracy, report.found.accuracy, report.oracle.accuracy) == (0, 0.5, 1)
    assert (report.closed.gain, report.found.gain, report.oracle.gain) == (0, 0.5, 1)
    index = small_reader().index
    read = reading.rows_read(index, facts.items_of(tmp_path).items[:2], [0, 0])
    assert all(sorted(rows) != sorted(found) for rows, found in zip(read["random"], read["found"], strict=True))
    assert (report.closed.prompts_cropped, report.oracle.prompts_cropped) == (0, 2)
    evaluation.write(tmp_path / "evals" / "reading.json", report)
    screen = StringIO()
    reading.show_run(tmp_path, Console(file=screen, width=100))
    assert "100.0" in screen.getvalue()

    (tmp_path / mcq.FACTS).write_text(lines[2])
    with pytest.raises(UserError, match="reading"):
        reading.evaluate_run(None, None, tmp_path, None, context=64, batch_size=2)
