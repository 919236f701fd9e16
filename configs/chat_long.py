"""chat-long: chat-v3's mix for 4,000 updates.

python -m ghost_jax.train --config=configs/chat_long.py          # or :mini, :nano
python -m ghost_jax.train --config=configs/chat_long.py:saved    # as recorded; or :mini,saved, :nano,saved
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    published = {"run": "chat-long", "accuracy": 0.171}
    return common.study(pretrain_v05, preset, published, recorded_rows=4, steps=4000, peak_lr=5e-5, qa=1.0, mcq=5.0)
