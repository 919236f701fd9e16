"""chat-v3, the study's canonical model: raw letter-only MCQ x5 beside the questions and answers.

    python -m ghost_jax.train --config=configs/chat_v3.py          # or :mini, :nano
    python -m ghost_jax.train --config=configs/chat_v3.py:saved    # or :mini,saved, :nano,saved

The table's row: raw letter-only MCQ x5, 1,500 steps, 5e-5, CTIBench 36.9%. With other seeds and days of data the same
recipe scored 32.6% and 31.2%; always answering C scores 37.1%.
The run as it was recorded, :saved, differs: MCQ x2, 3e-5, 1,800 steps after a warm-up of 120, rows of 1,024 tokens, 8
unpacked rows an update. Its loss was a mean over a pair's tokens and then over the pairs; the mean over records is the
same except for the weights within a pair.
"""

from configs import common, pretrain_v04


def get_config(preset=""):
    size, saved = common.saved_in(preset)
    if saved:
        c = common.chat_on(pretrain_v04, size, steps=1800, peak_lr=3e-5, warmup_steps=120, qa=1.0, mcq=2.0)
        c.data.seq_len = 1024
        common.unaccumulated(c, batch_size=8)
    else:
        c = common.chat_on(pretrain_v04, size, steps=1500, peak_lr=5e-5, qa=1.0, mcq=5.0)
    c.published.update(run="chat-v3 (canonical)", steps=1500, rate=5e-5, accuracy=0.369)
    return c
