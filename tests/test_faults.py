"""Faults on purpose: the quick ones here, the others before a release; and what must never be written down."""

import random
import secrets

import pytest

from ghost_jax.core.atomic_io import read_json
from tests.bench.fault_cases import FAULTS, Place, attempt
from tests.bench.faults import table
from tests.conftest import ROOT, set_all, tiny_base


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_survived(ghost, tiny_run, tmp_path, name):
    outcome = attempt(name, Place(tmp_path, ghost, tiny_run, random.Random(f"0 {name}")))
    if outcome["survived"] is None:
        pytest.skip(outcome["output"])
    assert outcome["survived"], outcome["output"]


def test_the_table_in_the_repository_is_that_of_its_record_and_the_docs_give_the_count():
    records = ROOT / "tests" / "bench" / "records"
    record = read_json(records / "faults.json")
    assert (records / "faults.md").read_text(encoding="utf-8") == table(record)
    assert [one["fault"] for one in record["faults"]] == list(FAULTS)
    counted = f"{record['survived']} faults survived of {record['tried']} tried, on a {record['machine']}"
    assert counted in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_no_key_of_the_environment_is_in_a_record_a_log_or_an_export(ghost, tiny_run, tmp_path):
    canary = secrets.token_hex(16)  # drawn: a run records the uncommitted changes of this very file
    env = dict.fromkeys(("GHOST_API_KEY", "GHOST_TEACHER_KEY", "HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"), canary)
    run, out = tmp_path / "run", tmp_path / "out"
    export = ("ghost_jax.export", f"--workdir={run}", f"--out={out}")
    said = [
        ghost.here(*tiny_base(run, *set_all({"steps": 2, "save_every": 2})), env=env),
        ghost.here(*export, env=env),
        ghost.here(*export, env=env, check=False),  # refused: something is there
    ]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"environment.json", "metrics.jsonl", "tokenizer.json", "config.json"} <= {path.name for path in written}
    everything = [path.read_bytes() for path in written] + [(one.stdout + one.stderr).encode() for one in said]
    assert not [text for text in everything if canary.encode() in text]
