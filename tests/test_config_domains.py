"""ghost_jax/config/load.py: a value outside of its domain is refused with its key."""

import functools
import math
import operator

import pytest
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.config.keys import DOMAINS, OPTIONS
from ghost_jax.config.load import check, leaves
from ghost_jax.core.errors import UsageError
from tests.conftest import ROOT

NAMES = ("chat_v5", "pretrain_v05", "chat_facts", "chat_reader", "pretrain_exposure")
SPECS = [f"{ROOT}/configs/{name}.py:nano" for name in NAMES]
ODD = (True, 3, -5, 2.5, 10**400, 2**63, math.nan, math.inf, 1e300, 1e-40, None, "yes", "x" * 2000, "two\nlines")
ODD += ("a{99999999999}", (["cwe"],), ConfigDict({1: "a"}))
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


@pytest.fixture(scope="module")
def configs() -> list[ConfigDict]:
    """Unlocked configs that have every key between them."""
    found = [config_lib.load(spec) for spec in SPECS]
    for config in found:
        config.unlock()
        config.model.update({key.removeprefix("model."): 1 for key in OPTIONS if key != "model.tied"} | {"tied": True})
        config.model.update(head_dim=0, kv_heads=0)
    return found


@pytest.mark.parametrize("key", DOMAINS)
def test_a_value_outside_of_its_domain_is_refused_with_its_key(configs, key):
    domain, (*groups, name) = DOMAINS[key], key.split(".")
    config = next(config for config in configs if key in dict(leaves(config))).copy_and_resolve_references()
    group = functools.reduce(operator.getitem, groups, config)
    assert domain.holds(group[name])
    assert not any(map(domain.holds, ABSURD.get(key, ())))
    for value in [value for value in (*ODD, *ABSURD.get(key, ())) if not domain.holds(value)]:
        del group[name]  # a key that is there keeps its type
        group[name] = value
        with pytest.raises(UsageError) as caught:
            check(config)
        message = str(caught.value)
        assert message.startswith(f"{key} is ")
        assert str(domain) in message
        assert len(message) < 1000
