"""chat (v0.5 base re-tune): chat-v3's recipe on the v0.5 base.

    python -m ghost_jax.train --config=configs/chat_v05.py          # or :mini, :nano
    python -m ghost_jax.train --config=configs/chat_v05.py:saved    # as recorded; or :mini,saved, :nano,saved

Always answering B scores the 32.5% of its row in the study's table.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    published = {"run": "chat (v0.5 base re-tune)", "accuracy": 0.325}
    return common.study(pretrain_v05, preset, published, recorded_rows=4, steps=1500, peak_lr=5e-5, qa=1.0, mcq=5.0)
