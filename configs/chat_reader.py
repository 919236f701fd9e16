"""A reader: it ranks the options of a question after the passages that a search found for it.

    python -m ghost_jax.train --config=configs/chat_reader.py          # or :mini, :nano
    python -m evals.ctibench --workdir=runs/chat_reader-full --book=open --reader=both

- Retrieval belongs to the question: passages are in its prompts in training and in evaluation, found by the same
  search. As in RAFT, some do not help: 70% of the prompts have the oracle among the passages, 20% another passage
  instead, 10% none.
- No letters, so nothing can collapse to one. The options are not shown; each is a continuation of the prompt, and the
  loss is the cross-entropy of the gold one among their log-probabilities a token, near chance at the start.
- fact_mcq's questions: each option is right in one question of its four, so that only reading tells them apart.
- Q&A at a tenth of the objective, so that it still answers in a chat.

At the end the evaluation `reading` asks about held-out subjects behind random, found and oracle passages.

The lexical reader finds the line; this decides which option the line supports where the words differ. The second
command prints what it adds as a paired difference.
"""

from configs import common, pretrain_v05


def get_config(preset=""):
    c = common.chat_on(pretrain_v05, preset, steps=3000, peak_lr=1e-4, read=1.0, qa=0.2)
    c.data.layout = "cloze"
    c.data.truncation = "drop"  # a question that loses options cannot be ranked
    c.objective.lm, c.objective.ranking = 0.1, 1.0
    c.evals.reading = {"batch_size": 16}
    return c
