"""chat-v4 (failed): the hybrid mix at a rate of 2e-4.

    python -m ghost_jax.train --config=configs/chat_v4_failed.py          # or :mini, :nano
    python -m ghost_jax.train --config=configs/chat_v4_failed.py:saved    # or :mini,saved, :nano,saved

The table's row: hybrid, 2e-4, killed at step 300 of 2,000 after validation losses of 3.175, 3.285 and 3.403.
The watch stops this run where three losses rise in the same way; nothing is done to make them. In the study the rate
was set after the step, so that the first update ran at the full 2e-4; here it is the schedule's, :saved included.
The recorded run, :saved, differs: its "batch 4 x accumulation 8" cut 4 conversations into 4 parts and added up no more,
so an update is 4 unpacked rows, and the loss a mean over records.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    size, saved = common.saved_in(preset)
    c = common.chat_on(pretrain_v05, size, steps=2000, peak_lr=2e-4, qa=1.0, mcq=5.0, cot=2.0, small_talk=8.0)
    if saved:
        common.unaccumulated(c, batch_size=4)
    c.divergence.stop = True
    c.published.update(run="chat-v4 (failed)", steps=300, rate=2e-4, outcome="diverged, killed")
    return c
