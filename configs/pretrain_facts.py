"""A base for measuring knowledge: all typed facts of CAPEC and CWE, 70 to 100 statements of each.

    python -m ghost_jax.train --config=configs/pretrain_facts.py          # or :mini, :nano

CAPEC and CWE state a quarter of the typed facts of the reference pages, few enough for so many statements of each in
hours on two cores; `chat_facts.py` asks for them. Nine rows in ten are facts. 35,670,528 parameters at full size, as
the study's.
"""

from configs import common


def get_config(preset=""):
    c = common.pretrain_on("small36m", preset)
    scale = common.scale_of(preset)
    c.data.sources = ("capec", "cwe", "embedded")
    c.data.mixture.facts = 1.0
    c.data.validation_records = 256
    c.steps = {"nano": 18_000, "mini": 12_000, "full": 4_000}[scale]
    c.batch_size = c.micro_batch_size = 4 if scale == "mini" else 8
    if scale == "mini":  # the loss after 1.2M tokens was 1.40; with AdamW 1.67, with updates twice as large 1.58
        c.optim.name = "muon"
    c.optim.schedule = "wsd"
    c.optim.warmup_steps = 200
    c.optim.peak_lr = {"nano": 3e-3, "mini": 2e-3, "full": 1e-3}[scale]
    c.log_every = 50
    c.eval_every = c.save_every = 1000
    return c
