"""chat_v5, the study's last run: hybrid of raw MCQ x5, CoT MCQ x2 and small talk x8 on the v0.5 base.

    python -m ghost_jax.train --config=configs/chat_v5.py          # or :mini, :nano
    python -m ghost_jax.train --config=configs/chat_v5.py:saved    # as recorded; or :mini,saved, :nano,saved

An update has 8 rows. On more than 8 devices add --config.batch_size=16 (a row a device on a v5e:4x4, another recipe)
or --config.mesh.tensor=2 (the same update; each matrix is split over two devices).

The base is `configs/pretrain_v05.py` of the same size, trained first where its run is missing. The CoT reasons are the
facts' own evidence sentences; in the study a 14B teacher wrote them. --config.data.cot.teacher and .model name an
OpenAI-compatible endpoint that writes them.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    published = {"run": "chat-v5", "val_loss": 2.990, "accuracy": 0.348}
    mixture = {"qa": 1.0, "mcq": 5.0, "cot": 2.0, "small_talk": 8.0}
    return common.study(pretrain_v05, preset, published, recorded_rows=4, steps=2000, peak_lr=5e-5, **mixture)
