"""evals/tasks/facts.py: held-out facts asked of a chat run, and what is held out of its data."""

import json

import pytest

from evals.tasks import facts, mcq
from ghost_jax.core.errors import UserError
from ghost_jax.data.storage.array_record import open_examples
from tests.conftest import set_all, tiny_chat


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
