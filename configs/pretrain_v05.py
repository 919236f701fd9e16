"""The v0.5 base of the study: 36M parameters, RoPE + RMSNorm + SwiGLU, trained on the cyber corpus.

python -m ghost_jax.train --config=configs/pretrain_v05.py          # full size: a GPU or a TPU slice
python -m ghost_jax.train --config=configs/pretrain_v05.py:mini     # 7M, an hour or two on a laptop
python -m ghost_jax.train --config=configs/pretrain_v05.py:nano     # 1.3M, about a minute on two cores
"""

from configs import common


def get_config(preset=""):
    size = common.pick(preset, nano="nano", mini="mini")
    c = common.defaults("pretrain", {"full": "small36m"}.get(size, size))
    c.data.sources = ("attack", "capec", "cwe", "cti", "cve", "embedded")
    c.data.seq_len = 1024
    c.model.dropout = 0.1
    c.steps = 60_000
    c.batch_size = 32
    c.optim.peak_lr = 3e-4
    c.optim.warmup_steps = 2000
    c.eval_every = c.save_every = 1000
    if size == "mini":
        c.data.sources = ("attack", "capec", "cwe", "embedded")
        c.data.seq_len = 512
        c.model.dropout = 0.0
        c.steps = 2000
        c.optim.peak_lr = 1e-3
        c.optim.warmup_steps = 100
        c.eval_every = c.save_every = 200
    if size == "nano":
        c.data.sources = ("attack", "capec", "cwe", "embedded")
        c.data.seq_len = 256
        c.model.dropout = 0.0
        c.steps = 100
        c.batch_size = c.micro_batch_size = 8
        c.optim.peak_lr = 3e-3  # a small model on few updates wants a higher rate
        c.optim.warmup_steps = 10
        c.data.validation_records = 64
        c.log_every = 5
        c.eval_every = c.save_every = 50
    return c
