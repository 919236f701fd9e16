"""What repetition buys: a base to which a thousand facts are stated 10, 30, 100, 300 and 1,000 times, 200 of them each.

    python -m ghost_jax.train --config=configs/pretrain_exposure.py          # or :mini, :nano

One pass over the dataset `exposure`; `--config.data.seed=0` to 4 rotates which facts are stated how often. The recall
of each group is measured at the end (`evals/tasks/recall.py`). Rates are those of pretrain_facts.
"""

from configs import common, pretrain_facts


def get_config(preset=""):
    c = pretrain_facts.get_config(preset)
    c.data.sources = ("attack", "capec", "cwe", "embedded")
    c.data.mixture.update(pretrain=0.0, facts=0.0, exposure=1.0)
    c.optim.name, c.batch_size, c.micro_batch_size = "adamw", 8, 8  # at every size, which are compared
    c.steps = {"nano": 4_800, "mini": 2_100, "full": 900}[common.scale_of(preset)]  # one pass
    c.evals.recall = {"batch_size": 16}
    return c
