"""chat-v4 (failed): the hybrid mix at a rate of 2e-4.

    python -m ghost_jax.train --config=configs/chat_v4_failed.py          # or :mini, :nano
    python -m ghost_jax.train --config=configs/chat_v4_failed.py:saved    # as recorded; or :mini,saved, :nano,saved

The table's row: hybrid, 2e-4, killed at step 300 of 2,000 after validation losses of 3.175, 3.285 and 3.403.
The divergence watch stops this run where three losses in a row rise; at nano it does not, because it counts losses over
all validation records alone. In the study the rate was set after the step, so that the first update ran at the full
2e-4; here it is the schedule's, :saved included.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    published = {"run": "chat-v4 (failed)", "steps": 300, "outcome": "diverged, killed"}
    mixture = {"qa": 1.0, "mcq": 5.0, "cot": 2.0, "small_talk": 8.0}
    c = common.study(pretrain_v05, preset, published, recorded_rows=4, steps=2000, peak_lr=2e-4, **mixture)
    c.divergence.stop = True
    return c
