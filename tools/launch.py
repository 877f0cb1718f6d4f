"""torchrun that knows what a restart is good for: python tools/launch.py <torchrun's options> tools/pretrain_gpt.py <flags>.

torchrun ends every failed launch with a traceback of its own and exit code 1, restarts after any failure, and does not
know SIGUSR1. Here a launch that was told to stop, that saved and left, or that a user's mistake ended, ends in silence
with the exit code of its processes: they have said why. `--max-restarts` counts crashes, on all nodes alike. Anything
else keeps torchrun's report of which rank failed first.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import tempfile
from typing import Any, NoReturn

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.launcher import api as launcher

from megatron.cli import EXIT_FAILURE, EXIT_USER_ERROR
from megatron.launching.agent import ASKING_SIGNALS, Agent, say

EXAMPLES = """\
examples:
  two processes on this machine, restarted up to three times after a crash:
    python tools/launch.py --standalone --nproc-per-node 2 --max-restarts 3 tools/pretrain_gpt.py \\
      --config examples/tiny.yaml --tensor-model-parallel-size 2 --save runs/a --load runs/a \\
      --data-path data/code_text_document --tokenizer-file data/tokenizer.json
  the same line on each of two nodes, of which node0 is one:
    python tools/launch.py --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id a \\
      --rdzv-endpoint node0:6000 tools/pretrain_gpt.py <the same flags>

SIGTERM, SIGINT, SIGHUP and SIGUSR1 ask the processes to save and leave; a second one ends them at once.
exit codes: 0 finished; 75 left because it was asked to; 2 a user's mistake; 1 a crash, with no restart
left; 128 + number: ended by a signal before everything was saved (docs/cluster.md)

The options below are torchrun's; the flags of training are in python tools/pretrain_gpt.py --help.
"""

# They tell of every process that is stopped, and of a failed one what the report at the end says too.
CHATTY = (
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)


def fail(message: str) -> NoReturn:
    """Leave with one line, as a parser whose usage would fill a screen does not."""
    print(f"launch.py: error: {message}; see --help", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def parse(scratch: str) -> argparse.Namespace:
    """Parse torchrun's options. scratch: a folder for its files, where none is given for logs."""
    parser = run.get_args_parser()
    parser.prog = "launch.py"
    parser.usage = "python tools/launch.py <torchrun's options> SCRIPT <flags of the script>"
    parser.description = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = fail  # type: ignore[method-assign]
    args = parser.parse_args()
    args.log_dir = args.log_dir or scratch
    # The agent takes the others; this one, the terminal's Ctrl-\\, ends the launcher and its processes.
    args.signals_to_handle = "SIGQUIT"
    try:
        share_cores(run.determine_local_world_size(args.nproc_per_node))
        config, _, _ = run.config_from_args(args)
    except (ValueError, RuntimeError) as error:  # what argparse lets pass
        fail(str(error))
    if config.nproc_per_node < 1:
        fail(f"--nproc-per-node {args.nproc_per_node}: give a whole number from 1 on")
    return args


def share_cores(num_processes: int) -> None:
    """Give each process of this node its share of the cores, unless OMP_NUM_THREADS says how many; torchrun gives it one."""
    is_linux = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(num_cores // max(num_processes, 1), 1)))


class Agents:
    """Makes the agent that torchrun's launcher asks for, and keeps it for us."""

    def __init__(self, patience_seconds: float) -> None:
        self.agent: Agent | None = None
        self._patience_seconds = patience_seconds

    def __call__(self, **options: Any) -> Agent:
        self.agent = Agent(
            environment=os.environ,
            patience_seconds=self._patience_seconds,
            abandon=lambda: os._exit(EXIT_FAILURE),
            **options,
        )
        return self.agent


def main() -> int:
    """Launch, and give the exit code. What torchrun would leave in the folder of temporary files goes with the launch."""
    with tempfile.TemporaryDirectory(prefix="launch_", ignore_cleanup_errors=True) as scratch:
        return launch(parse(scratch))


def launch(args: argparse.Namespace) -> int:
    """Run the processes to their end, and give the exit code."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    patience = vars(args).get("shutdown_timeout")  # torch 2.11 has the variable only
    if patience is None:
        patience = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
    agents = Agents(float(patience))
    # Shared, the store that processes meet in outlives a restart, and with it the addresses of those that are gone: the
    # new ones then connect to nobody, or wait for them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # torchrun has no way to name another agent; the rest of it stays as it is.
    launcher.LocalElasticAgent = agents  # type: ignore[assignment,misc]
    try:
        run.run(args)
    except SignalException as stop:
        code = agents.agent.exit_code_when_asked if agents.agent else None
        return 128 + stop.sigval.value if code is None else code
    except ChildFailedError as error:
        return after_failure(agents.agent, error)
    except RendezvousError as error:
        explain_meeting(args, error)
    finally:
        # It is decided how this ends: Slurm signals until the last process is gone.
        for number in ASKING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return 0


def after_failure(agent: Agent | None, error: ChildFailedError) -> int:
    """Give the exit code after processes failed; the agent has said which one, and that one has said why."""
    if agent is None or agent.end is None:
        raise error
    code = agent.exit_code_when_asked
    if code is not None:
        return code
    return agent.end.code if agent.end.says_why else EXIT_FAILURE


def explain_meeting(args: argparse.Namespace, error: RendezvousError) -> NoReturn:
    """Leave with what kept the nodes from meeting, in a line."""
    where = args.rdzv_endpoint
    causes = f"{error} {error.__cause__}"
    if re.search("EADDRINUSE|address already in use", causes, re.IGNORECASE):
        fail(
            f"port {where.rpartition(':')[2]} of this node is taken; give another one to all nodes "
            f"(--rdzv-endpoint HOST:PORT; MASTER_PORT of the examples)"
        )
    if isinstance(error, RendezvousTimeoutError):
        say(f"error: not all of --nnodes {args.nnodes} came to {where} in time; are all started?")
    elif isinstance(error, RendezvousClosedError):
        say("error: another node has left, and with it this launch; its log says why")
    elif isinstance(error, RendezvousConnectionError):
        say(
            f"error: the launcher at {where} does not answer: is it started, is the name right and "
            f"the same on all nodes, does a firewall close the port? ({causes.splitlines()[0]})"
        )
    else:
        raise error
    sys.exit(EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
