"""Train a GPT model: Megatron's flags, torchrun's processes. See --help."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron import cli, logging
from megatron.checkpoint.choice import find_flaw_by_length
from megatron.config import Config
from megatron.errors import ConfigError, MegatronError
from megatron.parallel.launch import Launch
from megatron.training.inputs import open_inputs
from megatron.training.signals import leaving_at_once
from megatron.training.start import Start, describe_fallback, plan_start
from megatron.training.summary import summarize

EXAMPLES = """\
  one process:
    python tools/pretrain_gpt.py --num-layers 4 --hidden-size 256 --num-attention-heads 8 \\
      --attention-head-type multiquery --seq-length 512 --max-position-embeddings 512 \\
      --micro-batch-size 4 --train-iters 100 --lr 1e-3 --data-path data/py_text_document \\
      --tokenizer-file tokenizer.json --save runs/a --load runs/a --save-interval 50
  check a launch of 16 processes on a laptop, starting nothing:
    python tools/pretrain_gpt.py --dry-run --world-size 16 <the same flags>

exit codes: 0 finished; 75 left early because it was asked to (signal, --exit-*), having saved if there
is --save: the same command continues; 128 + signal at a signal before the first step or a second one:
left at once without saving, what was saved before is whole; 124 the watchdog ended a run that hung;
76 another process failed or was lost, and this one ended with it; 2 an option, a file or a
checkpoint is wrong; 1 anything else (docs/reliability.md)"""

logger = logging.get_logger("megatron.pretrain_gpt")  # as a script, __name__ is no part of it


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, and train or explain."""
    parser = cli.make_parser("Train a GPT model on .bin/.idx datasets.", EXAMPLES)
    parser.add_argument("--dry-run", action="store_true", help="check everything, start nothing")
    parser.add_argument(
        "--world-size",
        type=int,
        help="with --dry-run: processes to check for (default: what the layout needs)",
    )
    cli.add_config(parser)
    args = cli.parse_known(parser, argv)
    config = cli.config_from(args)
    if args.dry_run:
        world_size = args.world_size or config.parallel.model_parallel_size
        logging.configure()
        inputs = open_inputs(config, world_size)
        start = plan_start(inputs, world_size, find_flaw_by_length)
        print(*summarize(inputs, world_size), f"start      {_described(start)}", sep="\n")
        for line in describe_fallback(start):
            print(f"warning    {line}")
        print("all checks passed; nothing was started")
        return 0
    if args.world_size is not None:
        raise ConfigError(
            "--world-size goes with --dry-run; torchrun says how many processes there are"
        )
    launch = Launch.from_environment()
    logging.configure(launch.rank)
    with leaving_at_once():  # until training takes the signals over
        return _start_and_train(config, launch)


def _start_and_train(config: Config, launch: Launch) -> int:
    """Check, train, and give the exit code."""
    try:
        inputs = open_inputs(config, launch.world_size)
        start = plan_start(inputs, launch.world_size)
        if launch.restart is not None:
            logger.info(f"{launch.restart}; goes on from {_described(start)}")
        _make_folder("--save", config.checkpoint.save)
        logging.configure(launch.rank, json_dir=_log_folder(config))
    except MegatronError:
        if launch.local_rank == 0:
            raise
        return cli.EXIT_USER_ERROR  # the node's first process sees the same and says it
    # torch takes seconds to import: a dry run and a user's mistake do not wait for it.
    from megatron.training.pretrain import pretrain

    try:
        outcome = pretrain(inputs, start, launch)
    except MegatronError as error:
        if launch.has_to_say(error):
            raise
        return cli.exit_code(error)
    return 0 if outcome == "finished" else cli.EXIT_STOPPED


def _described(start: Start) -> str:
    """Say where a run would start."""
    if start.folder is None:
        return "random weights"
    if not start.takes_progress:
        return f"the weights of {start.folder}, at step 0"
    return f"{start.folder}, at step {start.state['iteration']}"


def _log_folder(config: Config) -> Path | None:
    """Give the folder of --structured-logs, made."""
    if not config.logging.structured_logs:
        return None
    chosen, save = config.logging.structured_logs_dir, config.checkpoint.save
    folder = chosen or str(Path(save or ".") / "logs")
    _make_folder("--save" if save and not chosen else "--structured-logs-dir", folder)
    return Path(folder)


def _make_folder(flag: str, folder: str | None) -> None:
    """Make a folder that the run writes to, if one is given; ConfigError where that cannot be."""
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{flag} {folder} cannot be made: {error.strerror}; give a folder on a disk with room"
        ) from None


if __name__ == "__main__":
    cli.run_tool(main)
