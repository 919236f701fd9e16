"""chat_v5, the study's last run: hybrid of raw MCQ x5, CoT MCQ x2 and small talk x8 on the v0.5 base.

    python -m ghost_jax.train --config=configs/chat_v5.py          # 36M as published: 2,000 updates of 32 at 5e-5
    python -m ghost_jax.train --config=configs/chat_v5.py:mini     # 7M
    python -m ghost_jax.train --config=configs/chat_v5.py:nano     # 1.3M, under two minutes with its base on two cores

The table's row: hybrid raw x5 + CoT x2 + small talk x8, 2,000 steps, 5e-5, validation loss 2.990, CTIBench 34.8%.
The base is `configs/pretrain_v05.py` of the same preset; it is trained first where its run is missing. Here the CoT
reasons are the facts' own evidence sentences, where the study had a 14B teacher write them.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    size = common.pick(preset, nano="nano", mini="mini")
    c = common.defaults("chat", {"full": "small36m"}.get(size, size))
    c.base = pretrain_v05.get_config(preset)
    c.base.name, c.base.preset = "pretrain_v05", preset
    c.data.sources = c.base.data.sources
    c.data.seq_len = 512
    c.data.mixture.update(qa=1.0, mcq=5.0, cot=2.0, small_talk=8.0)
    c.steps = 2000
    c.batch_size = 32
    c.micro_batch_size = 4
    c.optim.peak_lr = 5e-5
    c.optim.warmup_steps = 100
    if size != "full":
        c.optim.peak_lr = 1e-3  # scaled to the size: 5e-5 moves a small model too little in few updates
    if size == "mini":
        c.steps = 400
        c.optim.warmup_steps = 20
    if size == "nano":
        c.data.seq_len = 192
        c.steps = 40  # 2,000 / 50
        c.batch_size = c.micro_batch_size = 16
        c.optim.warmup_steps = 4
        c.data.validation_records = 32
        c.log_every = 2
        c.eval_every = c.save_every = 20
    return c
