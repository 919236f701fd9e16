"""ghost_jax/config/validate.py: every key has a domain, and a value outside of it is refused with the key's name."""

import argparse
import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from evals.items.answers import ORDERS
from ghost_jax.config import load as config_lib
from ghost_jax.config.validate import (
    BASE_DATASETS,
    CHAT_OPTIONS,
    DOMAINS,
    OPTIONS,
    PRETRAIN_OPTIONS,
    SOURCES,
    Flag,
    MixtureSchedule,
    Names,
    OneOf,
    Real,
    Text,
    Whole,
    leaves,
)
from ghost_jax.core.errors import UsageError
from ghost_jax.data import sources
from ghost_jax.model.config import ModelConfig
from ghost_jax.training.loss import OBJECTIVES
from ghost_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from tests.conftest import ROOT

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name != "common.py")
CHAT, BASE, FACTS, EXPOSURE = (
    f"{ROOT}/configs/{name}.py:nano" for name in ("chat_v5", "pretrain_v05", "chat_facts", "pretrain_exposure")
)


def parse(*argv: str) -> ConfigDict:
    return config_lib.parse(argparse.ArgumentParser(), list(argv))[0]


def held_by(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The group that holds a key, and the key's name in it."""
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name


# ---- Every key has a domain ----


def test_every_key_of_every_recipe_has_a_row_and_every_row_a_key():
    found = set()
    for path in RECIPES:
        for preset in ("", "mini", "nano"):
            config = config_lib.load(f"{path}:{preset}")
            for part in [config, config.base] if config.stage == "chat" else [config]:
                keys = dict(leaves(part))
                assert not keys.keys() - DOMAINS.keys(), f"{path.name}: give these a row in config/validate.py"
                found |= keys.keys()
            config_lib.validate(config)
    assert found == DOMAINS.keys() - OPTIONS.keys()
    assert {key.removeprefix("model.") for key in DOMAINS if key.startswith("model.")} == {
        field.name for field in dataclasses.fields(ModelConfig)
    }


def test_the_table_names_what_there_is():
    assert tuple(sources.SOURCES) == SOURCES
    assert set(DOMAINS["evals.ctibench.orders"].names) == ORDERS.keys()
    assert set(DOMAINS["optim.schedule"].names) == SCHEDULES.keys()
    assert set(DOMAINS["optim.name"].names) == OPTIMIZERS.keys()
    assert {key.removeprefix("objective.") for key in DOMAINS if key.startswith("objective.")} == set(OBJECTIVES)


# ---- A value outside of a domain is refused ----

NO_NUMBERS = (math.nan, math.inf, -math.inf, "1", None)


def outside(domain: object) -> list:
    """Values that a domain does not hold: beyond its ends, of no name in it, of another type."""
    match domain:
        case Flag():
            return [2, "yes", None]
        case Whole(low, high, also):
            below = low - 1 if low - 1 != also else low - 2
            return [
                below,
                also - 1 if also else below,
                high + 1,
                2**63,
                10**5000,
                low + 0.5,
                float(low),
                True,
                *NO_NUMBERS,
            ]
        case Real(low, high, above, below):
            ends = [low] * above + [high, high * (1 - 1e-9)] * below  # which float32 rounds to the end
            return [*ends, low - 1e-3, high * 1.001, 1e300, 1e-40, *NO_NUMBERS]
        case OneOf():
            return ["xyzzy", 3, None, "a\nb"]
        case Names(known):
            return [(), ("cwe", "cwe"), "cwe", ("",), (3,), *[("xyzzy",)] * bool(known)]
        case Text():
            return ["two\nlines", "x" * 2000, "nul\0", "\udcff", 3, None]
        case MixtureSchedule():
            return [
                3,
                ConfigDict({"10": 1.0}),
                ConfigDict({"10": {"mcq": -1.0}}),
                ConfigDict({"10": {"mcq": math.nan}}),
            ]
    raise AssertionError(f"say which values are outside of a {type(domain).__name__}")


# What is absurd of some keys whatever the table says.
ABSURD = {
    "model.dropout": (1.0, 1.5, -0.5),
    "model.width": (0, 10**9),
    "model.layers": (0, -1, 10**9),
    "model.vocab_size": (10, 10**9),
    "optim.clip_norm": (-1.0, math.inf),
    "optim.b1": (1.0, 2.0, -0.1, 0.99999999),
    "optim.b2": (1.0, 2.0, -0.1, 0.99999999),
    "optim.peak_lr": (0.0, -1e-3, math.nan),
    "optim.min_lr": (-1e-6,),
    "optim.weight_decay": (-0.1,),
    "optim.warmup_steps": (-1,),
    "optim.decay_share": (0.0, -0.1, 1.5),
    "steps": (0, -5, 2**31, 2**63),
    "seed": (-1, 2**32, 2**63),
    "data.seed": (-1, 2**32),
    "mesh.data": (0, -2),
    "keep": (0,),
    "keep_best": ("val_los", "held_out_accuracy", "accuracy"),
    "data.sources": (("atack",), ()),
    "data.validation_records": (-5,),
    "divergence.evaluations": (1, 0),
    "log.trace_at": (-1,),
    "online_probe.questions": (0, -1),
    "online_probe.every": (-1,),
    "data.qa_per_source": (0, -1),
    "data.mixture.mcq": (-1.0, math.inf),
    "objective.lm": (-1.0, math.nan),
    "evals.ctibench.orders": ("odd",),
    "evals.ctibench.batch_size": (0,),
    "name": ("../elsewhere", ""),
}


@pytest.mark.parametrize("key", DOMAINS)
def test_a_value_outside_of_its_domain_is_refused_with_the_name_of_its_key(key):
    spec = BASE if key.removeprefix("data.mixture.") in BASE_DATASETS else CHAT
    spec = {"evals.recall.batch_size": EXPOSURE, "evals.facts.batch_size": FACTS}.get(key, spec)
    for value in [*outside(DOMAINS[key]), *ABSURD.get(key, ())]:
        config = config_lib.load(spec)
        group, name = held_by(config, key)
        with config.unlocked(), config.ignore_type():
            group[name] = value
        with pytest.raises(UsageError) as caught:
            config_lib.validate(config)
        assert str(caught.value).startswith(f"{key} is "), value
        assert str(DOMAINS[key]) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_what_is_absurd_has_a_key():
    assert not ABSURD.keys() - DOMAINS.keys()


@pytest.mark.parametrize("key", sorted(DOMAINS.keys() - CHAT_OPTIONS.keys() - PRETRAIN_OPTIONS.keys()))
def test_a_base_is_checked_as_its_chat_config_is(key):
    config = config_lib.load(CHAT)
    if key not in dict(leaves(config.base)):
        return
    group, name = held_by(config.base, key)
    with config.unlocked(), config.ignore_type():
        group[name] = outside(DOMAINS[key])[0]
    with pytest.raises(UsageError) as caught:
        config_lib.validate(config)
    assert str(caught.value).startswith(f"base.{key} is ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.clip_norm", 0.0),
        ("optim.b1", 0.0),
        ("model.dropout", 0.0),
        ("model.dropout", 0.999),
        ("optim.peak_lr", 1e30),
        ("optim.warmup_steps", 0),
        ("optim.warmup_steps", 10**6),  # a run that is shorter ends at the peak
        ("data.validation_records", 0),
        ("seed", 2**32 - 1),
        ("mesh.fsdp", 4),
        ("data.qa_sources", ("my_blog",)),
    ],
)
def test_the_ends_of_a_domain_belong_to_it(key, value):
    config = config_lib.load(CHAT)
    group, name = held_by(config, key)
    group[name] = value
    config_lib.validate(config)


# ---- Numbers that no arithmetic takes ----


def test_a_real_is_an_int_or_a_float_within_float32():
    domain = Real(0, 1e30)
    assert all(map(domain.holds, (0, 1, 0.0, -0.0, 1e-37, 1e30)))
    assert not any(map(domain.holds, (True, "1", 10**5000, 1e31, 1e-39, 1e-300, -1e-300, -1)))


NUMBERS = [key for key, domain in DOMAINS.items() if isinstance(domain, Whole | Real) and key not in OPTIONS]


@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_no_number_or_beyond_all_numbers_is_refused_on_the_command_line(key):
    spec = BASE if key.removeprefix("data.mixture.") in BASE_DATASETS else CHAT
    spec = {"evals.recall.batch_size": EXPOSURE, "evals.facts.batch_size": FACTS}.get(key, spec)
    digits = ("1" + "0" * 400, "1" + "0" * 5000, "10**5000")
    for text in ("nan", "inf", "-inf", "1e400", "-1e400", *digits, "", "1e", "()"):
        with pytest.raises(UsageError) as caught:
            parse(f"--config={spec}", f"--config.{key}", text)
        assert key in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", [key for key in NUMBERS if isinstance(DOMAINS[key], Whole)])
def test_a_count_is_no_float_and_none_that_overflows(key):
    spec = BASE if key.removeprefix("data.mixture.") in BASE_DATASETS else CHAT
    spec = {"evals.recall.batch_size": EXPOSURE, "evals.facts.batch_size": FACTS}.get(key, spec)
    for text in ("1e3", "20.0", "-0.5", str(2**63), str(2**64), str(-(2**63))):
        with pytest.raises(UsageError) as caught:
            parse(f"--config={spec}", f"--config.{key}={text}")
        assert key in str(caught.value)


# ---- Keys ----


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("c.optim.peek_lr = 1.0", 'Did you mean "optim.peak_lr"?'),
        ("c.data.mixture.mqc = 5.0", 'Did you mean "data.mixture.mcq"?'),
        ("c.base.optim.peek_lr = 1.0", 'Did you mean "base.optim.peak_lr"?'),
        ("c.evals.other = {}", "evals.other"),
        ("c.evals.other = {'batch_size': 3}", "evals.other.batch_size"),
        ("del c.optim.b1", "lacks optim.b1"),
        ("del c.base", "needs a base"),
        ("c.stage = 'pretrain'", "A pretrain config has no key"),
        ("c.base = c.base.copy_and_resolve_references()\n    c.base.stage = 'chat'", "base."),
        ("c.stage = 'imported'", "stage is imported"),
        ("c.steps = 10**5000", "steps is "),
        ("c.data.mixture_schedule = {10**5000: {'mcq': 1.0}}", "data.mixture_schedule"),
        ("c.data.mixture_schedule = {'9' * 5000: {'mcq': 1.0}}", "data.mixture_schedule"),
        ("c.model.kv_heads = 3", "model.kv_heads (3)"),
    ],
)
def test_a_config_file_with_a_wrong_key_or_value_is_refused(tmp_path, change, said):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from configs import chat_v5\ndef get_config(preset):\n    c = chat_v5.get_config('nano')\n    {change}\n"
        "    return c\n"
    )
    with pytest.raises(UsageError) as caught:
        parse(f"--config={path}")
    assert said in str(caught.value)
