"""What a model knows: held-out facts, asked by letters, by cloze and by ranking.

    python -m ghost_jax.train --config=configs/chat_facts.py          # or :mini, :nano

The base has read every fact (`pretrain_facts.py`). The chat stage asks about the subjects of the train split alone, in
three forms at once: questions and answers, multiple choice with letters, and options to be ranked. The evaluation
`facts` asks about the other subjects, in wordings that the chat stage does not have.
"""

from configs import common, pretrain_facts


def get_config(preset=""):
    c = common.chat_on(
        pretrain_facts, preset, steps=500, peak_lr=5e-5, qa=1.0, fact_mcq=1.0, fact_rank=4.0, small_talk=1.0
    )
    c.steps = 500
    c.optim.warmup_steps = 20
    c.data.layout = "letter_after"
    c.data.qa_sources = ("capec", "cwe", "embedded")
    c.data.validation_records = 128
    c.objective.ranking = 1.0
    c.log_every = 10
    c.eval_every = c.save_every = 250
    c.evals.facts = {"batch_size": 16}
    return c
