"""chat-v2, the study's first chat model: security questions and answers alone, no multiple choice.

    python -m ghost_jax.train --config=configs/chat_v2.py          # or :mini, :nano

How its recorded run differs is not known, so there is no :saved.
"""

from configs import common, pretrain_v04


def get_config(preset=""):
    published = {"run": "chat-v2", "accuracy": 0.19}
    return common.study(pretrain_v04, preset, published, steps=1500, peak_lr=5e-5, qa=1.0)
