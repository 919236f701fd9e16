"""ghost_jax/config/validate.py and the rules of load.py: a value outside of its domain is refused with its key."""

import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from evals.items.answers import ORDERS
from ghost_jax.config import load as config_lib
from ghost_jax.config.keys import DOMAINS, OPTIONS, integer, real, several_of
from ghost_jax.config.validate import check, leaves
from ghost_jax.core.errors import UsageError
from ghost_jax.model.config import ModelConfig
from ghost_jax.training.loss import OBJECTIVES
from ghost_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from tests.conftest import ROOT
from tests.test_config import CHAT, refusal, value_of

SPECS = [f"{ROOT}/configs/{name}.py:nano" for name in ("chat_v5", "pretrain_v05", "chat_facts", "pretrain_exposure")]


@pytest.fixture(scope="module")
def configs() -> list[ConfigDict]:
    """Unlocked configs that have every key between them; a test restores what it changes."""
    found = [config_lib.load(spec) for spec in SPECS]
    for config in found:
        config.unlock()
        config.model.update({key.removeprefix("model."): 1 for key in OPTIONS if key != "model.tied"} | {"tied": True})
        config.model.update(head_dim=0, kv_heads=0)
    return found


def group_of(configs: list[ConfigDict], key: str) -> tuple[ConfigDict, ConfigDict, str]:
    """Returns the first config that has a key, the group that holds it, and the key's name in it."""
    config = next(config for config in configs if key in dict(leaves(config)))
    group, _, name = key.rpartition(".")
    return config, value_of(config, group) if group else config, name


def fault_of(configs: list[ConfigDict], key: str, value: object) -> str:
    """Returns the message that refuses a value of a key."""
    config, group, name = group_of(configs, key)
    before = group[name]
    del group[name]  # a key that is there keeps its type
    group[name] = value
    with pytest.raises(UsageError) as caught:
        check(config)
    del group[name]
    group[name] = before
    return str(caught.value)


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


ODD = (True, 3, -5, 2.5, 10**300, 2**63, math.nan, math.inf, 1e300, 1e-40, None, "yes", "x" * 2000, "two\nlines")
ODD += ("nul\0", "\udcff", (), ("cwe", "cwe"), ("",), (3,), ConfigDict({"1": 1.0}), ConfigDict({"1": {"mcq": -1.0}}))
# Values that make no sense, whatever the table contains.
ABSURD = {
    **dict.fromkeys(("model.width", "model.layers", "batch_size", "steps"), (0, -1, 2**31)),
    "model.vocab_size": (10, 10**9),
    **dict.fromkeys(("optim.b1", "optim.b2"), (1.0, 2.0, -0.1, 0.99999999)),
    **dict.fromkeys(("optim.clip_norm", "optim.weight_decay", "objective.lm", "data.mixture.mcq"), (-1.0, math.inf)),
    "optim.peak_lr": (0.0, -1e-3, math.nan),
    **dict.fromkeys(("optim.warmup_steps", "log.trace_at", "online_probe.every", "data.validation_records"), (-1,)),
    **dict.fromkeys(("seed", "data.seed"), (-1, 2**32, 2**63)),
    **dict.fromkeys(("keep", "log_every", "online_probe.questions", "evals.ctibench.batch_size"), (0, -1)),
    "data.sources": (("atack",), ()),
    "divergence.evaluations": (1, 0),
    **dict.fromkeys(("evals.ctibench.orders", "optim.schedule", "data.layout", "loss_norm", "model.dtype"), ("odd",)),
    "name": ("../elsewhere", ""),
}


@pytest.mark.parametrize("key", DOMAINS)
def test_a_value_outside_of_its_domain_is_refused_with_its_key(configs, key):
    domain = DOMAINS[key]
    assert domain.holds(dict(leaves(group_of(configs, key)[0]))[key])
    assert not any(map(domain.holds, ABSURD.get(key, ())))
    for value in [value for value in (*ODD, *ABSURD.get(key, ())) if not domain.holds(value)]:
        message = fault_of(configs, key, value)
        assert message.startswith(f"{key} is ")
        assert str(domain) in message
        assert len(message) < 1000


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (integer(2, 5, also=-1), (2, 5, -1), (1, 6, -2, 0, 2.0, True, "2", None, math.nan, 10**300)),
        (real(1e30), (0, 1, 0.0, -0.0, 1e-37, 1e30), (True, "1", 10**300, 1e31, 1e-39, -1e-300, -1, math.nan)),
        (real(1, below=True), (0, 0.999), (1, 1 - 1e-9, -0.1)),
        (several_of("a", "b"), (("a",), ("b", "a")), ((), ("a", "a"), ("c",), "a", ["a"])),
        (several_of(), (("my_blog",),), (("",), ("a b",), (3,), ("a,b",))),
        (DOMAINS["seed"], (0, 2**32 - 1), (2**32,)),
        (DOMAINS["data.mixture_schedule"], (ConfigDict({"5": {"qa": 0.0}}),), (ConfigDict({"5": {"qa": math.nan}}), 3)),
    ],
)
def test_a_domain_holds_its_ends_and_nothing_beyond(domain, inside, outside):
    assert [value for value in inside if not domain.holds(value)] == []
    assert [value for value in outside if domain.holds(value)] == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["data.seq_len=4096"], ("data.seq_len", "4096", "model.context", "1024")),
        (["model.heads=3", "base.model.heads=3"], ("model.heads (3)",)),
        (["optim.peak_lr=1e-3", "optim.min_lr=2e-3"], ("optim.min_lr is 0.002", "0.001")),
        (["lora.rank=4", "optim.name=muon"], ("optim.name is muon", "lora.rank")),
        (["mesh.fsdp=-1"], ("mesh", "-1")),
        (["log.trace_at=41"], ("log.trace_at is 41", "40")),
        (["keep_best=val_loss_read"], ("keep_best is val_loss_read", "val_loss_shared, val_loss_cot")),
        (["data.cot.teacher=ftp://host"], ("data.cot.teacher",)),
        (["objective.lm=0"], ("objective",)),
        (["objective.letter=1", "data.layout=cloze"], ("objective.letter", "data.layout=cloze")),
        (["objective.letter=1", "data.mixture.mcq=0", "data.mixture.cot=0"], ("objective.letter", "fact_mcq")),
        (["objective.ranking=1"], ("objective.ranking", "rank")),
        ([f"data.mixture.{name}=0" for name in ("qa", "mcq", "cot", "small_talk")], ("data.mixture from update 0",)),
        (["model.width=256"], ("model.width", "--config.base.model.width")),
    ],
    ids=lambda value: value[0],
)
def test_values_that_contradict_each_other_are_refused(words, parts):
    message = refusal(f"--config={CHAT}:nano", *(f"--config.{word}" for word in words))
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("c.optim.peek_lr = 1.0", '"optim.peak_lr"'),
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
    path = tmp_path / "mine.py"
    path.write_text(
        f"from configs import chat_v5\ndef get_config(preset):\n    c = chat_v5.get_config('nano')\n    {change}\n"
        "    return c\n"
    )
    assert part in refusal(f"--config={path}")


def test_multipliers_may_change_with_an_update(configs):
    config = config_lib.load(SPECS[0])
    with config.unlocked():
        config.data.mixture_schedule = {"25": {"qa": 2}, "10": {"mcq": 0}}
    config_lib.validate(config)
    by_start = config_lib.mixtures(config)
    assert list(by_start) == [0, 10, 25]
    assert [by_start[start]["mcq"] for start in by_start] == [5.0, 0.0, 0.0]
    assert [by_start[start]["qa"] for start in by_start] == [1.0, 1.0, 2.0]
