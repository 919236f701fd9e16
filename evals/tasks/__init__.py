"""The evaluations that a config may name in `evals`, with options of their own; `EVALUATIONS` is the table.

Each is a module with

    check_data(workdir, data_dir)          raises UserError where the data of a run hold what it will be asked
    evaluate_run(predict, tokenizer, workdir, data_dir, *, context, **options) -> record
                                           of `evals/NAME.json`, see `ghost_jax.runs.evaluation`
    show_run(workdir, console)             prints that
"""

from types import ModuleType

from evals.tasks import facts, mcq, recall

EVALUATIONS: dict[str, ModuleType] = {"ctibench": mcq, "facts": facts, "recall": recall}
