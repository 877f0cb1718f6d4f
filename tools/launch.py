"""torchrun with a short end: python tools/launch.py <torchrun's options> tools/pretrain_gpt.py <flags>.

torchrun ends every failed launch with a traceback of its own and exit code 1. Here a launch that was told to stop, that
saved and left, or that a user's mistake ended, ends in silence with the exit code of its processes: they have said
why. Anything else keeps torchrun's report of which rank failed first.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import NoReturn

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

EXAMPLES = """\
examples:
  two processes on this machine:
    python tools/launch.py --standalone --nproc-per-node 2 tools/pretrain_gpt.py \\
      --config examples/tiny.yaml --tensor-model-parallel-size 2 --save runs/a --load runs/a \\
      --data-path data/code_text_document --tokenizer-file data/tokenizer.json
  the same line on each of two nodes, of which node0 is one:
    python tools/launch.py --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id a \\
      --rdzv-endpoint node0:6000 tools/pretrain_gpt.py <the same flags>

The options below are torchrun's; the flags of training are in python tools/pretrain_gpt.py --help.
"""

EXIT_USER_ERROR = 2
QUIET_CODES = {EXIT_USER_ERROR, 75}  # a user's mistake; saved and left when asked
# They tell of every process that is stopped, and of a failed one what the report at the end says too.
CHATTY = (
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)


def fail(message: str) -> NoReturn:
    """Leave with one line, as a parser whose usage would fill a screen does not."""
    print(f"launch.py: error: {message}; see --help", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def parse() -> argparse.Namespace:
    """Parse torchrun's options."""
    parser = run.get_args_parser()
    parser.prog = "launch.py"
    parser.usage = "python tools/launch.py <torchrun's options> SCRIPT <flags of the script>"
    parser.description = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_args()


def main() -> int:
    """Launch, and give the exit code."""
    args = parse()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(args)
    except SignalException as stop:
        return 128 + stop.sigval.value
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in QUIET_CODES:
            raise
        return first.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
