"""The loop of a run: step, log, validate, save, leave. What it drives is built in `pretrain`."""

from __future__ import annotations

from megatron.config import Config
from megatron.data.consumption import consumption
from megatron.logging import get_logger
from megatron.training.account import Account
from megatron.training.evaluate import Validation
from megatron.training.run import Outcome, Run
from megatron.training.signals import StopRequest
from megatron.training.step import PendingStep, train_step
from megatron.training.votes import NO_VOTES, StopVote, Votes

logger = get_logger(__name__)


def train(run: Run, started: float | None = None) -> Outcome:
    """Train until the run is complete or a process is asked to leave; the last step is always saved.

    started: when the process did, from where --exit-duration-in-mins counts (default: now).

    Collective over the world: every process leaves at the same step. Steps are queued; their results are read one
    step late, or at once where something needs them.
    """
    training, progress = run.config.training, run.progress
    account = Account(
        progress, run.spikes, save=run.config.checkpoint.save, on_votes=run.saver.hear
    )
    with StopRequest(training.exit_duration_in_mins, started) as request:
        vote = StopVote(lambda: request.is_made)
        if progress.iteration == 0:
            _validate(run, run.validation, vote)
        if vote.is_agreed:
            return _left(run)
        while not run.is_complete:
            size = run.batches.size(progress.consumed_samples)
            account.clock.start()
            step = queue_step(run, size, run.saver.vote(Votes(stop=request.is_made)))
            progress.advance(size)
            account.add(step, size, size * run.parts.seq_length)
            account.read_earlier()
            if run.rollback.go_back_if_due(progress, account):
                continue
            run.saver.proceed()
            is_exit = _is_multiple(progress.iteration, training.exit_interval)
            if not (is_exit or account.should_stop or _needs_result(run)):
                continue
            account.read_all()
            should_leave = is_exit or account.should_stop
            if _is_due(run, run.config.logging.log_interval):
                _log(run, account)
            account.clock.pause()
            if _is_due(run, training.eval_interval):
                _log_sources(run)
                _validate(run, run.validation, vote)
            should_leave = should_leave or vote.is_agreed
            is_last = run.is_complete or should_leave
            run.marks.enter("save")
            run.replicas.check_if_due(progress.iteration, is_last=is_last)
            if run.saver.save_if_due(progress, is_last=is_last):
                should_leave = vote.ask() or should_leave  # not a step later, with another save
            if run.is_complete:
                _validate(run, run.test, vote)
            elif should_leave:
                run.saver.finish()
                return _left(run)
    run.marks.enter("leave")
    run.saver.wait_for_deletions()
    return "finished"


def _is_multiple(iteration: int, interval: int | None) -> bool:
    return interval is not None and iteration % interval == 0


def _is_due(run: Run, interval: int | None) -> bool:
    """Say whether what comes at an interval of steps, and at the end, comes after this one."""
    return run.is_complete or _is_multiple(run.progress.iteration, interval)


def _needs_result(run: Run) -> bool:
    """Say whether the step just queued is logged, validated, checked or saved, or the last one."""
    config = run.config
    intervals = (
        config.logging.log_interval,
        config.training.eval_interval,
        config.checkpoint.save_interval,
        config.training.check_weight_hash_across_dp_replicas_interval,
    )
    return any(_is_due(run, interval) for interval in intervals)


def _left(run: Run) -> Outcome:
    """Say where the run was left, and how it goes on."""
    logger.info(f"left after step {run.progress.iteration}; {_how_to_continue(run.config)}")
    return "stopped"


def _how_to_continue(config: Config) -> str:
    options = config.checkpoint
    if options.save is None:
        return "nothing was saved: there is no --save"
    if options.load is None:
        return f"add --load {options.save} to continue"
    return "the same command continues"


def queue_step(run: Run, size: int, votes: Votes = NO_VOTES) -> PendingStep:
    """Read a global batch of size samples and queue one step with it."""
    consumed = run.progress.consumed_samples
    run.marks.enter("step", run.progress.iteration + 1, consumed)
    return train_step(
        run.parts,
        run.loader.batch(consumed, size),
        consumed_samples=consumed,
        global_batch_size=size,
        votes=votes,
        limits=run.spikes.limits(run.progress.iteration + 1),
    )


def _validate(run: Run, validation: Validation, vote: StopVote) -> None:
    """Validate and log, unless a process is asked to leave: then the vote is that they do."""

    def should_stop() -> bool:
        run.marks.enter("validate")
        return vote.ask_ahead()

    losses = validation.run(run.parts.pipeline, run.parts.context, should_stop)
    vote.ask()
    if losses is None:
        logger.info(f"validation at step {run.progress.iteration} was cut short")
    elif run.writer is not None and losses:
        run.writer.validation(run.progress.iteration, losses)


def _log_sources(run: Run) -> None:
    if run.writer is not None:
        consumed, seq_length = run.progress.consumed_samples, run.parts.seq_length
        run.writer.sources(
            run.progress.iteration, consumption(run.dataset, consumed, seq_length=seq_length)
        )


def _log(run: Run, account: Account) -> None:
    """Write the line of the steps since the last one, all of which have been read; begin the next one's."""
    progress, result, clock = run.progress, account.last, account.clock
    interval = progress.interval
    clock.pause()
    run.marks.enter("log")
    account.begin_interval()
    if run.writer is None:
        return
    values = {
        "iteration": progress.iteration,
        "consumed_samples": progress.consumed_samples,
        "consumed_tokens": progress.consumed_samples * run.parts.seq_length,
        "lm_loss": interval.mean_loss,
        "grad_norm": result.gradient_norm,
        "learning_rate": result.learning_rate,
        "step_time_s": clock.seconds / clock.num_steps,
        **run.throughput.fields(clock.tokens, clock.seconds, clock.attention_share),
        "skipped": interval.num_skipped,
        "loss_tokens": interval.num_loss_tokens,
    }
    run.writer.training(
        values,
        total_iterations=run.total_iterations,
        usual_step_seconds=clock.usual_step_seconds,
    )
    run.marks.metrics = values
    while run.marks.remarks:
        run.writer.remark(progress.iteration, run.marks.remarks.popleft())
