"""The v0.4 base of the study: 45.17M parameters, learned positions + LayerNorm + GELU, GPT-2's vocabulary size.

    python -m ghost_jax.train --config=configs/pretrain_v04.py          # or :mini, :nano

The study used GPT-2's own vocabulary; here one of its size is trained on the corpus, since no weights or vocabularies
are downloaded. It is the base of chat_v2, chat_v3 and chat_v4_raft.
"""

from configs import common


def get_config(preset=""):
    return common.pretrain_on("v04", preset)
