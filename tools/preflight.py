"""Check the nodes of a run before it starts: python tools/launch.py … tools/preflight.py <the flags of training>. See --help."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

import torch.distributed as dist

from megatron import cli, logging
from megatron.errors import MegatronError
from megatron.parallel.context import ParallelContext, initialize_distributed
from megatron.parallel.launch import Launch
from megatron.parallel.lost_peer import losses_named
from megatron.preflight.checks import Preflight, all_checks
from megatron.preflight.finding import Finding, has_passed, to_json
from megatron.training.inputs import Inputs, open_inputs

EXAMPLES = """\
  two processes on this machine:
    python tools/launch.py --standalone --nproc-per-node 2 tools/preflight.py \\
      --config examples/tiny.yaml --tensor-model-parallel-size 2 --save runs/a --load runs/a \\
      --data-path data/code_text_document --tokenizer-file data/tokenizer.json
  before a run of the examples, on all its nodes:
    PREFLIGHT=1 MODEL=15b DATA_PATH=… TOKENIZER_FILE=… sbatch examples/pretrain_starcoder.slurm

prints a line a check on rank 0: PASS, WARN or FAIL, and what to do. exit codes: 0 nothing failed; 1 a
check failed; 2 an option or a file is wrong; 76 a process was lost on the way (docs/cluster.md)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags of training, check the nodes, and tell."""
    parser = cli.make_parser("Check the nodes of a run before it starts.", EXAMPLES)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of lines"
    )
    cli.add_config(parser)
    args = cli.parse_known(parser, argv)
    config = cli.config_from(args)
    launch = Launch.from_environment()
    logging.configure(rank=1)  # what the tiny runs tell is not for readers
    try:
        inputs = open_inputs(config, launch.world_size)
    except MegatronError:
        if launch.local_rank == 0:
            raise
        return cli.EXIT_USER_ERROR  # the node's first process sees the same and says it
    try:
        return _check(inputs, launch, as_json=args.json)
    except MegatronError as error:
        if launch.has_to_say(error):
            raise
        return cli.exit_code(error)


def _check(inputs: Inputs, launch: Launch, *, as_json: bool) -> int:
    """Check the nodes, print what was found, and give the exit code. Collective over the world."""
    device = initialize_distributed(inputs.config.parallel, launch)
    context = ParallelContext.create(inputs.config.parallel, launch.world_size, device)
    preflight = Preflight(inputs, launch, context, socket.gethostname())
    findings: list[Finding] = []
    with losses_named():
        for found in all_checks(preflight):
            findings += found
            if launch.rank == 0 and not as_json:
                print(*(line for item in found for line in item.lines()), sep="\n", flush=True)
        passed = [has_passed(findings)]
        dist.broadcast_object_list(passed, src=0)
    if launch.rank == 0:
        if as_json:
            print(json.dumps(to_json(findings)))
        else:
            print("preflight passed" if passed[0] else "preflight failed; nothing was started")
    dist.destroy_process_group()
    return 0 if passed[0] else cli.EXIT_FAILURE


if __name__ == "__main__":
    cli.run_tool(main)
