"""Our recipe, chat_ours, on the base of about 350M parameters: is it size that the study's recipes lacked?

    python -m ghost_jax.train --config=configs/chat_base350m.py          # full size: a TPU slice; or :mini, :nano

The same records as chat_ours sees, in updates of 16 rows, so that 16 devices have one each. The study expects that
reasons help at this size: --config.data.mixture.cot=2 adds them. Untested: it was never trained at full size.
"""

from configs import chat_ours, common, pretrain_base350m


def get_config(preset=""):
    c = chat_ours.on(pretrain_base350m, preset)
    c.mesh.update(c.base.mesh)
    if common.scale_of(preset) == "full":
        c.batch_size = 16
        c.steps = 1000
    return c
