"""chat-recovered: multiple choice with a reason x1 instead of the letters, and small talk x30.

    python -m ghost_jax.train --config=configs/chat_recovered.py          # or :mini, :nano
    python -m ghost_jax.train --config=configs/chat_recovered.py:saved    # as recorded; or :mini,saved, :nano,saved

The study's reasons were written by a 14B model; here they are the facts' own evidence sentences unless
--config.data.cot.teacher names an endpoint. `--plan` prints the task share, which fell below 5% in the study.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    published = {"run": "chat-recovered", "val_loss": 2.808, "accuracy": 0.308}
    return common.study(
        pretrain_v05, preset, published, recorded_rows=4, steps=1500, peak_lr=3e-5, qa=1.0, cot=1.0, small_talk=30.0
    )
