"""The v0.5 base of the study: 35,670,528 parameters, RoPE + RMSNorm + SwiGLU, trained on the cyber corpus.

python -m ghost_jax.train --config=configs/pretrain_v05.py          # full size: a GPU or a TPU slice
python -m ghost_jax.train --config=configs/pretrain_v05.py:mini     # 7M, two to four hours on two cores
python -m ghost_jax.train --config=configs/pretrain_v05.py:nano     # 1.3M, about a minute on two cores
"""

from configs import common


def get_config(preset=""):
    return common.pretrain_on("small36m", preset)
