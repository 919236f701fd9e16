"""Trains a config: `python -m ghost_jax.train --config=configs/chat_v5.py:nano`.

A chat config whose base is not trained yet trains it first. Repeating a command resumes what is unfinished, bit for
bit, and only reports what is done.
"""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from evals.answering.letters import make_probe
from evals.tasks import EVALUATIONS
from evals.tasks.mcq import check_questions
from ghost_jax.config import load as config_lib
from ghost_jax.core import jax_setup
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import UsageError, UserError, command, parser_of
from ghost_jax.core.object_store import path_of
from ghost_jax.core.paths import data_folders
from ghost_jax.data.prepare import prepare
from ghost_jax.data.storage.artifact_cache import fingerprint
from ghost_jax.parallel import distributed
from ghost_jax.runs import evaluation, plan, run_dir, run_record
from ghost_jax.runs.logger import Diverged, Journal
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import check_place, facts_of
from ghost_jax.training.loading import check_base, load_model, newest_record
from ghost_jax.training.loop import train
from ghost_jax.training.setup import TrainSetup, attention_of, mesh_of
from ghost_jax.training.step import make_predict


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a command: the config, its run directory, and that of its base."""

    config: ConfigDict
    workdir: Path
    base_workdir: Path

    @property
    def finished(self) -> bool:
        return run_record.is_finished(self.workdir)


def stages_of(config: ConfigDict, workdir: Path | None, base: Path | None) -> list[Stage]:
    """Returns the stages of a command in order: the base of a chat run, unless it is given, and the run itself.

    The base lies beside the chat run, where other recipes find it too.
    """
    if base and not run_record.is_finished(base):
        raise UserError(f"The base run in {base} is not finished. Repeat the command that made it.")
    on = f"-on-{base.resolve().name}" if base else ""
    workdir = workdir or Path("runs") / f"{run_dir.name_of(config)}{on}"
    if config.stage != "chat":
        return [Stage(config, workdir, workdir)]
    base_workdir = base or workdir.parent / run_dir.name_of(config.base)
    if workdir.resolve() == base_workdir.resolve():
        raise UsageError(f"{workdir} is the run directory of the base. Give the chat run another --workdir.")
    first = [] if base else [Stage(config.base, base_workdir, base_workdir)]
    return [*first, Stage(config, workdir, base_workdir)]


def check_bound(stages: Sequence[Stage]) -> None:
    """Raises UserError where the run directory of a stage was started otherwise, before any stage is trained.

    A started run is bound to its config and its base's but for `FREE_KEYS`, its base's parameters, its data and its
    vocabulary. The first two are compared here; the identity that its checkpoints record has the others too, and is
    compared in `run_stage` when the data are prepared, before anything in the directory is replaced.
    """
    for stage in stages:
        check_place(stage.workdir)
        run_dir.check_shared(stage.workdir)
        run_dir.settle(stage.config, stage.workdir)
        run_dir.check_same(stage.workdir, stage.config)
        if stage.config.stage == "chat" and not (stage.finished and is_gone(stage.base_workdir)):
            check_base(stage.workdir, stage.base_workdir)


def is_gone(base: Path) -> bool:
    """Returns whether a base is not trained, or its parameters were deleted."""
    return not (run_record.is_finished(base) and newest_record(base)[1])


def probe_of(setup: TrainSetup, workdir: Path, tokenizer: Tokenizer) -> Callable[[dict], dict[str, float]] | None:
    """Returns `params -> figures` of a chat model's letters on held-out questions; None where the config has none."""
    config, model = setup.config, setup.model.config
    if config.stage != "chat" or not config.online_probe.every:
        return None
    predict = make_predict(model, setup.shapes, setup.mesh)
    questions = config.online_probe.questions
    probe = make_probe(workdir, tokenizer, config.data.layout, questions=questions, context=model.context)
    return lambda params: probe(functools.partial(predict, params))


def evaluate(config: ConfigDict, workdir: Path, data_dir: Path | None) -> None:
    """Scores the last checkpoint with each evaluation of the config; writes `evals/<name>.json`."""
    mesh = mesh_of(config)
    model, params, step = load_model(workdir, mesh, config.steps)
    predict = functools.partial(make_predict(model, params, mesh), params)
    tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
    for name, options in config.evals.items():
        evaluate_run = EVALUATIONS[name].evaluate_run
        result = evaluate_run(predict, tokenizer, workdir, data_dir, context=model.context, **options)
        if distributed.is_main():
            result = dataclasses.replace(result, step=step, machine=run_dir.machine())
            evaluation.write(workdir / "evals" / f"{name}.json", result)


def check_data(workdir: Path, data_dir: Path | None, evals: Sequence[str]) -> None:
    """Raises UserError where the recorded data of a run hold what it is asked: held-out questions, items of `evals`."""
    check_questions(workdir)
    for name in evals:
        EVALUATIONS[name].check_data(workdir, data_dir)


def check_stages(stages: Sequence[Stage], data_dir: Path | None, evals: Sequence[str]) -> None:
    """Prepares the data of all stages and checks them as `run_stage` does, before the first is trained for hours."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, stage.config.stage) for stage in stages]
        for stage, place in zip(stages, places, strict=True):
            prepared = prepare(stage.config, data_dir)
            TrainSetup(stage.config, prepared.tokenizer.vocab_size)
            if distributed.is_main():
                run_dir.record_data(stage.config, place, places[0], prepared)
                check_data(place, data_dir, evals)


def run_stage(
    stage: Stage, data_dir: Path | None, evals: Sequence[str], words: Sequence[str], console: Console
) -> None:
    """Completes one stage: data, training, scores, and the mark that it is finished.

    Its data are first searched for the items of `evals`, by which the last stage is scored. `words` are recorded.
    """
    config, workdir = stage.config, stage.workdir
    with run_dir.locked(workdir), distributed.end_with_peers():
        run_dir.open_run(workdir, config, words)
        if stage.finished:
            return
        if stopped := run_record.stopped(workdir):
            raise Diverged(stopped.step, stopped.reason)
        prepared = prepare(config, data_dir)
        distributed.barrier(f"the preparation of {workdir.name}")
        run_dir.check_shared(workdir)
        setup = TrainSetup(config, prepared.tokenizer.vocab_size)
        identity = setup.identity(prepared, stage.base_workdir)
        distributed.check_same(facts_of(identity))
        start, _ = newest_record(workdir, identity)
        if distributed.is_main():
            run_dir.record_resumed(workdir, start)
            plan.show(config, prepared, console)
            run_dir.record_data(config, workdir, stage.base_workdir, prepared)
            check_data(workdir, data_dir, evals)
        distributed.barrier(f"the records of {workdir.name}")
        open_journal = functools.partial(Journal, config, workdir, model=setup.model.config, mesh=setup.mesh)
        try:
            probe = probe_of(setup, workdir, prepared.tokenizer)
            train(setup, workdir, stage.base_workdir, prepared, identity, open_journal, probe)
        except Diverged as fault:
            if distributed.is_main():
                run_record.write(workdir, run_record.Stopped(fault.update, str(fault)))
            raise
        evaluate(config, workdir, data_dir)
        if distributed.is_main():
            run_record.write_finished(workdir, config.steps, config.evals.to_dict())


@command
def main(argv: Sequence[str]) -> int:
    """Trains a config and scores it; repeated, it resumes what is unfinished."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--workdir", type=path_of, metavar="DIR", help="run directory (default: runs/<config>-<preset>)")
    add("--plan", action="store_true", help="prepare the data; print parameters, mesh, mixture, ETA; train nothing")
    config, flags = config_lib.parse(parser, argv)
    distributed.start()
    jax_setup.set_up()
    data_folders(flags.data_dir)  # refused where it is wrong, also when all stages are finished
    distributed.barrier("the data folder")  # its copy of a store's may take some processes long
    console = make_console()
    distributed.check_same({"config": fingerprint(config_lib.to_json(config))})
    stages = stages_of(config, flags.workdir, flags.base)
    check_bound(stages)
    # A finished chat run is shown without its base.
    unfinished = [] if stages[-1].finished else [stage for stage in stages if not stage.finished]
    for stage in unfinished:
        # Refused before anything is written: devices that cannot form the mesh, or that lack the kernel.
        attention_of(stage.config, mesh_of(stage.config))
        if distributed.is_main():
            plan.announce(stage.config, stage.workdir, config, console)
    if not unfinished and distributed.is_main():
        note = f"{stages[-1].workdir} is finished, and is not trained again. For other data name another --workdir."
        console.print(note, highlight=False, soft_wrap=True)
    if flags.plan:
        for stage in stages:
            plan.show(stage.config, prepare(stage.config, flags.data_dir), console)
        distributed.barrier("the plan")  # see below
        return 0
    if len(unfinished) > 1:
        check_stages(unfinished, flags.data_dir, list(config.evals))
    for stage in unfinished:
        run_stage(stage, flags.data_dir, list(config.evals), argv, console)
    if distributed.is_main():
        for name in run_dir.evals_of(stages[-1].workdir, config):
            EVALUATIONS[name].show_run(stages[-1].workdir, console)
        from ghost_jax import report  # not imported where the first update need not wait for the plots' library

        folder = stages[-1].workdir
        report.write([folder], folder / "report")
        console.print(f"report: {folder / 'report' / 'index.html'}", highlight=False, soft_wrap=True)
    distributed.barrier("the report")  # a process that ends waits for the others for seconds, and then all of them fail
    return 0


if __name__ == "__main__":
    sys.exit(main())
