"""ghost_jax/config/validate.py and the rules of load.py: a value outside of its domain is refused with its key."""

import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from evals.items.answers import ORDERS
from ghost_jax.config import load as config_lib
from ghost_jax.config.keys import DOMAINS, OPTIONS, integer, real, several_of
from ghost_jax.config.validate import leaves
from ghost_jax.model.config import ModelConfig
from ghost_jax.training.loss import OBJECTIVES
from ghost_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from tests.conftest import ROOT
from tests.test_config import CHAT, refusal


def test_every_key_of_every_config_has_a_domain_and_every_domain_a_key():
    found = set()
    for path in sorted((ROOT / "configs").glob("*.py")):
        for preset in ("", "mini", "nano") if path.name not in ("common.py", "__init__.py") else ():
            config = config_lib.load(f"{path}:{preset}")
            for part in [config, config.base] if config.stage == "chat" else [config]:
                found |= dict(leaves(part)).keys()
    assert found == DOMAINS.keys() - OPTIONS.keys()
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert {key.removeprefix("model.") for key in DOMAINS if key.startswith("model.")} == fields


def test_the_table_names_what_there_is():
    assert set(DOMAINS["evals.ctibench.orders"].names) == ORDERS.keys()
    assert set(DOMAINS["optim.schedule"].names) == SCHEDULES.keys()
    assert set(DOMAINS["optim.name"].names) == OPTIMIZERS.keys()
    assert {key.removeprefix("objective.") for key in DOMAINS if key.startswith("objective.")} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (integer(2, 5, also=-1), (2, 5, -1), (1, 6, -2, 0, 2.0, True, "2", None, math.nan, 10**300)),
        (real(1e30), (0, 1, 0.0, -0.0, 1e-37, 1e30), (True, "1", 10**300, 1e31, 1e-39, -1e-300, -1, math.nan)),
        (real(1, below=True), (0, 0.999), (1, 1 - 1e-9, -0.1)),
        (several_of("a", "b"), (("a",), ("b", "a")), ((), ("a", "a"), ("c",), "a", ["a"])),
        (several_of(), (("my_blog",),), (("",), ("a b",), (3,), ("a,b",))),
        (DOMAINS["seed"], (0, 2**32 - 1), (2**32, -1)),
        (DOMAINS["batch_size"], (1,), (0, -1, 2**31)),
        (DOMAINS["optim.b1"], (0.0, 0.9), (1.0, -0.1, 0.99999999)),
        (DOMAINS["optim.peak_lr"], (1e-3,), (0.0, -1e-3, math.nan)),
        (DOMAINS["objective.lm"], (0.0,), (-1.0, math.inf)),
        (DOMAINS["divergence.evaluations"], (2,), (1,)),
        (DOMAINS["data.sources"], (("cwe",),), (("atack",), ())),
        (DOMAINS["name"], ("a",), ("../elsewhere", "")),
        (DOMAINS["data.mixture_schedule"], (ConfigDict({"5": {"qa": 0.0}}),), (ConfigDict({"5": {"qa": math.nan}}), 3)),
    ],
)
def test_a_domain_holds_its_ends_and_nothing_beyond(domain, inside, outside):
    assert [value for value in inside if not domain.holds(value)] == []
    assert [value for value in outside if domain.holds(value)] == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optim.peak_lr=0"], ("optim.peak_lr is 0.0", str(DOMAINS["optim.peak_lr"]))),
        (["name=a/b"], ("name is a/b", str(DOMAINS["name"]))),
        (["data.seq_len=4096"], ("data.seq_len", "4096", "model.context", "1024")),
        (["model.heads=3", "base.model.heads=3"], ("model.heads (3)",)),
        (["optim.peak_lr=1e-3", "optim.min_lr=2e-3"], ("optim.min_lr is 0.002", "0.001")),
        (["mesh.fsdp=-1"], ("mesh", "-1")),
        (["log.trace_at=41"], ("log.trace_at is 41", "40")),
        (["keep_best=val_loss_read"], ("keep_best", "val_loss_shared, val_loss_cot")),
        (["objective.lm=0"], ("objective",)),
        (["objective.letter=1", "data.layout=cloze"], ("objective.letter", "data.layout=cloze")),
        (["objective.letter=1", "data.mixture.mcq=0", "data.mixture.cot=0"], ("objective.letter", "fact_mcq")),
        (["objective.ranking=1"], ("objective.ranking", "rank")),
        ([f"data.mixture.{name}=0" for name in ("qa", "mcq", "cot", "small_talk")], ("data.mixture from update 0",)),
        (["model.width=256"], ("model.width", "--config.base.model.width")),
    ],
    ids=lambda value: value[0],
)
def test_values_outside_of_their_domain_or_that_contradict_each_other_are_refused(words, parts):
    message = refusal(f"--config={CHAT}:nano", *(f"--config.{word}" for word in words))
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("c.base.optim.peek_lr = 1.0", '"base.optim.peak_lr"'),
        ("c.evals.other = {}", "evals.other"),
        ("del c.optim.b1", "optim.b1"),
        ("c.stage = 'pretrain'", "A pretrain config has no key"),
        ("c.base = c.base.copy_and_resolve_references()\n    c.base.stage = 'chat'", "base."),
        ("c.stage = 'imported'", "stage is imported"),
        ("c.data.mixture_schedule = {'40': dict(qa=2)}", "40"),  # the run has 40 updates, so none is left
        ("c.data.mixture_schedule = {'soon': dict(qa=2)}", "soon"),
        ("c.data.mixture_schedule = {'10': dict(mqc=2)}", '"mcq"'),
        ("c.data.mixture_schedule = {'10': dict(qa=0, mcq=0, cot=0, small_talk=0)}", "update 10"),
        ("c.model.kv_heads = 3", "model.kv_heads (3)"),
    ],
)
def test_a_config_file_with_a_wrong_key_or_value_is_refused(tmp_path, change, part):
    path, lines = tmp_path / "mine.py", ["c = chat_v5.get_config('nano')", change, "return c"]
    path.write_text("from configs import chat_v5\ndef get_config(preset):\n    " + "\n    ".join(lines))
    assert part in refusal(f"--config={path}")


def test_multipliers_may_change_with_an_update():
    config = config_lib.load(f"{CHAT}:nano")
    with config.unlocked():
        config.data.mixture_schedule = {"25": {"qa": 2}, "10": {"mcq": 0}}
    config_lib.validate(config)
    by_start = config_lib.mixtures(config)
    assert list(by_start) == [0, 10, 25]
    assert [by_start[start]["mcq"] for start in by_start] == [5.0, 0.0, 0.0]
    assert [by_start[start]["qa"] for start in by_start] == [1.0, 1.0, 2.0]
