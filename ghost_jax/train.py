"""Trains a config: `python -m ghost_jax.train --config=configs/chat_v5.py:nano`.

A chat config whose base was not trained yet trains it first. Repeating a command resumes what is unfinished, bit for
bit, and only reports what is done.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from evals.tasks import EVALUATIONS
from ghost_jax.config import load as config_lib
from ghost_jax.core import jax_setup, signals
from ghost_jax.core.console import make_console
from ghost_jax.core.errors import UserError, command
from ghost_jax.core.paths import data_folders, local_path
from ghost_jax.data import mixture
from ghost_jax.data.prepare import Prepared, mix_of, prepare
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel import distributed
from ghost_jax.parallel.mesh import batch_sharding
from ghost_jax.runs import evaluation, plan, run_dir, run_record
from ghost_jax.runs.logger import Diverged, Journal
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.mcq_format import letter_ids
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.checkpoint import Checkpoints, check_place, identity_of, load_model
from ghost_jax.training.setup import TrainSetup, attention_of, mesh_of
from ghost_jax.training.step import make_predict
from ghost_jax.training.validation import make_validation


def train(config: ConfigDict, workdir: Path, base_workdir: Path, prepared: Prepared) -> None:
    """Trains one stage to its last update, from its newest checkpoint, else its base, else scratch.

    Raises:
      Diverged: a loss is no number, or the watch stops the run.
      KeyboardInterrupt: the process was asked to stop; the state is saved.
    """
    setup = TrainSetup.from_config(config, prepared.tokenizer.vocab_size)
    model, mesh, abstract = setup.model, setup.mesh, setup.abstract
    mix = mix_of(config, prepared)
    identity = identity_of(model.config, prepared.tokenizer.sha256, mixture.fingerprint(mix))

    with Checkpoints(workdir, config.keep, config.keep_best) as checkpoints:
        state = checkpoints.newest(lambda step: checkpoints.restore(step, abstract, mesh, identity))
        if state is not None:
            run_dir.say(f"resuming {workdir} after update {int(state.step):,}")
        else:
            state = setup.first_state(base_workdir, prepared)
        start, first_save = int(state.step), checkpoints.latest is None

        train_step = setup.make_step(letter_ids(prepared.tokenizer) if config.stage == "chat" else None)
        validate = make_validation(
            model,
            abstract.params,
            mesh,
            mix,
            batch_size=setup.rows,
            records=config.data.validation_records,
        )
        probe = probe_of(config, workdir, prepared.tokenizer, model.config, abstract.params, mesh)
        stream = mixture.train_batches(mix, process=jax.process_index(), processes=jax.process_count())
        batches = mixture.read_from(stream, start)
        stop_vote = distributed.StopVote()
        with (
            Journal(config, workdir, start, model.config, mesh) as journal,
            signals.requests() as asked_to_stop,
            distributed.staying_together(),
        ):
            for update in range(start + 1, config.steps + 1):
                batch = journal.next_batch(batches, update)
                lr = setup.rate(update - 1)
                state, metrics = train_step(state, distributed.to_global(batch, batch_sharding(mesh)), lr)
                journal.dispatched(update, lr, metrics)
                last, stopping = update == config.steps, stop_vote(asked_to_stop())
                evaluates, saves = last or update % config.eval_every == 0, last or update % config.save_every == 0
                due = [validate] * evaluates + [probe] * bool(probe and update % config.online_probe.every == 0)
                if due or saves or stopping:  # a state is saved only when its update is known to be finite
                    losses = journal.settle(functools.partial(_all_of, due, state.params) if due else None)
                if saves or stopping:
                    checkpoints.save(state, identity, losses)
                    if first_save:
                        # A run whose checkpoints cannot be read ends here and not when it is resumed. It waits for one
                        # write and one read of the state, once in a run; no device holds the state twice.
                        state, first_save = checkpoints.read_back(state, mesh, identity), False
                if stopping:  # after the last update as well: the scores take longer than whoever asked will wait
                    raise KeyboardInterrupt


def _all_of(measures: Sequence[Callable[[dict], dict[str, float]]], params: dict) -> dict[str, float]:
    return {name: value for measure in measures for name, value in measure(params).items()}


def probe_of(
    config: ConfigDict, workdir: Path, tokenizer: Tokenizer, model: ModelConfig, abstract_params: dict, mesh: Mesh
) -> Callable[[dict], dict[str, float]] | None:
    """Returns `params -> figures` of the letters that a chat model says while it trains; None where none are asked."""
    if config.stage != "chat" or not config.online_probe.every:
        return None
    from evals.answering.online_probe import make_probe  # what only some runs need, no first update waits for

    predict = make_predict(model, abstract_params, mesh)
    questions = config.online_probe.questions
    probe = make_probe(workdir, tokenizer, config.data.layout, questions=questions, context=model.context)
    return lambda params: probe(functools.partial(predict, params))


def evaluate(config: ConfigDict, workdir: Path, data_dir: Path | None) -> None:
    """Scores the newest checkpoint with each evaluation of the config; writes `evals/<name>.json`."""
    mesh = mesh_of(config)
    model, params, step = load_model(workdir, mesh)
    predict = functools.partial(make_predict(model, params, mesh), params)
    tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
    for name, options in config.evals.items():
        evaluate = EVALUATIONS[name].evaluate_run
        result = evaluate(predict, tokenizer, workdir, data_dir, context=model.context, **options)
        if distributed.is_main():
            result = dataclasses.replace(result, step=step, machine=run_dir.machine())
            evaluation.write(workdir / "evals" / f"{name}.json", result)


def run_stage(
    config: ConfigDict, workdir: Path, base_workdir: Path, data_dir: Path | None, evals: Iterable[str], console: Console
) -> None:
    """Brings one stage from wherever it stands to its end: data, training, scores, and the mark that it is finished.

    Its data are first searched for the items of `evals`, by which the last stage will be scored.
    """
    with run_dir.locked(workdir):
        run_dir.open_run(workdir, config)
        if run_record.is_finished(workdir):
            return
        if stopped := run_record.stopped(workdir):
            raise Diverged(stopped.step, stopped.reason)
        prepared = prepare(config, data_dir)
        if distributed.is_main():
            plan.show(config, prepared, console)
            run_dir.record_data(config, workdir, base_workdir, prepared)
            for name in evals:
                EVALUATIONS[name].check_data(workdir, data_dir)
        distributed.barrier(f"the data of {workdir.name}")
        try:
            train(config, workdir, base_workdir, prepared)
        except Diverged as fault:
            if distributed.is_main():
                run_record.write(workdir, run_record.Stopped(fault.update, str(fault)))
            raise
        evaluate(config, workdir, data_dir)
        if distributed.is_main():
            run_record.write_finished(workdir, config.steps)


@command
def main(argv: Sequence[str]) -> int:
    """Trains a config and scores it; repeated, it resumes what is unfinished."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.train", description=main.__doc__)
    parser.add_argument(
        "--workdir", type=local_path, metavar="DIR", help="run directory (default: runs/<config>-<preset>)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print parameters, mesh, mixture, steps, ETA; train nothing"
    )
    config, flags = config_lib.parse(parser, argv)
    data_folders(flags.data_dir)  # a wrong one is said even where everything is finished and nothing is read
    distributed.start()
    jax_setup.set_up()
    console = make_console()
    on = f"-on-{flags.base.resolve().name}" if flags.base else ""
    workdir = flags.workdir or Path("runs") / f"{run_dir.name_of(config)}{on}"
    if flags.base and not run_record.is_finished(flags.base):
        raise UserError(f"The base run in {flags.base} is not finished. Repeat the command that made it.")
    # The base of a chat run lies beside it, where the next recipe finds it too.
    beside = workdir.parent / run_dir.name_of(config.base) if config.stage == "chat" else workdir
    base_workdir = flags.base or beside
    stages = [(config, workdir)]
    if config.stage == "chat" and not flags.base:
        stages.insert(0, (config.base, base_workdir))
    for stage, directory in stages:
        check_place(directory)
        run_dir.settle(stage, directory)

    for stage, directory in stages:
        if not run_record.is_finished(directory):
            # Refused before anything is written, where these devices cannot form the mesh or have no such kernel.
            attention_of(stage, mesh_of(stage))
            if distributed.is_main():
                plan.announce(stage, directory, config, console)
    unfinished = [stage for stage, directory in stages if not run_record.is_finished(directory)]
    if len(unfinished) > 1 and not flags.plan:
        prepare(config, flags.data_dir)  # what it lacks is said before its base is trained, and not hours later
    for stage, directory in stages:
        if flags.plan:
            plan.show(stage, prepare(stage, flags.data_dir), console)
        else:
            run_stage(stage, directory, base_workdir, flags.data_dir, config.evals, console)
    if distributed.is_main() and not flags.plan:
        for name in config.evals:
            EVALUATIONS[name].show_run(workdir, console)
        from ghost_jax import report  # it draws; no first update waits for the pictures' library

        console.print(f"report: {report.write([workdir], workdir / 'report')}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
