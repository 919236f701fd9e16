"""What repetition buys: a base to which a thousand facts are stated 10, 30, 100, 300 and 1,000 times, 200 of them each.

    python -m ghost_jax.train --config=configs/pretrain_exposure.py          # or :mini, :nano

One pass over the dataset `exposure`; `--config.data.seed=0` to 4 rotates which facts are stated how often. The recall
of each group is measured at the end (`evals/tasks/recall.py`).
"""

from configs import common


def get_config(preset=""):
    c = common.pretrain_on("small36m", preset)
    scale = common.scale_of(preset)
    c.data.sources = ("attack", "capec", "cwe", "embedded")
    c.data.mixture.pretrain, c.data.mixture.exposure = 0.0, 1.0
    c.data.validation_records = 256
    c.steps = {"nano": 4_800, "mini": 2_100, "full": 900}[scale]  # one pass
    c.batch_size = c.micro_batch_size = 8
    c.optim.schedule = "wsd"
    c.optim.warmup_steps = 200
    c.optim.peak_lr = {"nano": 3e-3, "mini": 2e-3, "full": 1e-3}[scale]
    c.log_every = 50
    c.eval_every = c.save_every = 1000
    c.evals.recall = {"batch_size": 16}
    return c
