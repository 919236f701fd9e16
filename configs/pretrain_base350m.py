"""The larger base that the study calls for, ghost-base: 341,099,520 parameters, on the data of pretrain_ours.

    python -m ghost_jax.train --config=configs/pretrain_base350m.py          # full size: a TPU slice; or :mini, :nano

As many tokens as pretrain_ours, 2.0 billion, in updates of 256 rows in place of 32: the two differ in that and in size.
That is 6 tokens a parameter, but the corpus is already read 38 times. Parameters and moments are split over all
devices; each block is computed again in the backward pass. The small presets are small models of the same kind.
Untested: it was never trained at full size; 3e-4 is the usual rate of that size and batch.
"""

from configs import common


def get_config(preset=""):
    c = common.pretrain_on("base350m", preset)
    c.data.mixture.facts = 1.0
    c.optim.schedule = "wsd"
    c.model.remat = True
    c.mesh.update(data=1, fsdp=-1)
    if common.scale_of(preset) == "full":
        c.batch_size = 256
        c.steps = 7500
        c.optim.warmup_steps = 500
        c.eval_every = c.save_every = 250
    return c
