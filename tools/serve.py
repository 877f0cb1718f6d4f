#!/usr/bin/env python3
"""Serve a model over HTTP, as OpenAI's completions: continue texts, or fill in what is missing."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron import cli, logging
from megatron.attribution.options import ReviewOptions
from megatron.errors import ConfigError, LostPeer
from megatron.inference.model_flags import (
    add_model_flags,
    check_processes,
    choose_tokenizer,
    load,
    with_one_voice,
)
from megatron.metrics_file import METRICS_FILE
from megatron.parallel.launch import Launch
from megatron.serving.options import PlaygroundOptions, ServingOptions

if TYPE_CHECKING:
    from megatron.attribution.review import Reviewer
    from megatron.inference.engine import Engine
    from megatron.serving.completion_call import ServedModel
    from megatron.serving.playground import Playground
    from megatron.tokenizer.interface import Tokenizer

EXAMPLES = """\
  serve this machine; the model is a run's folder or one of transformers (GPTBigCode, Starcoder2):
    python tools/serve.py --load runs/py
    curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "def f(", "max_tokens": 32}'
  serve others too, who give a key of the file in the header Authorization: Bearer KEY:
    python tools/serve.py --load runs/py --host 0.0.0.0 --port 8080 --api-key-file keys
  its page, http://127.0.0.1:8000/, shows where what it writes stands in the training data, and how a run goes:
    python tools/serve.py --load runs/py --attribution data/*_text_document.idx --training-run runs/py
  a model too large for one GPU, by two that share each layer:
    python tools/launch.py --standalone --nproc-per-node 2 tools/serve.py --load runs/15b \\
      --tensor-model-parallel-size 2

SIGTERM ends it when the requests in work are finished, or after --grace seconds. docs/serving.md has more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, serve."""
    parser = cli.make_parser(__doc__ or "", EXAMPLES)
    add_model_flags(parser)
    cli.add_section(parser, ServingOptions, title="serving")
    cli.add_section(parser, ReviewOptions, title="where texts come from")
    cli.add_section(parser, PlaygroundOptions, title="playground, the page at /")
    args = cli.parse_known(parser, argv)
    launch = Launch.from_environment()
    logging.configure(launch.rank)
    return with_one_voice(launch, lambda: _serve(args, launch))


def _serve(args: argparse.Namespace, launch: Launch) -> int:
    """Load the model and serve it, or follow the process that does. Collective over all processes."""
    options = cli.section_from(args, ServingOptions)
    options.check()
    check_processes(args, launch)
    from megatron.convert.source import ModelSource

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "serve.py needs uvicorn and starlette: pip install uvicorn starlette"
        ) from None
    from megatron.attribution.review import Reviewer
    from megatron.serving.guard import read_keys
    from megatron.serving.http_server import bind

    source = ModelSource.open(args.load, args.iteration, accepts_exact_gelu=args.gelu_as_tanh)
    tokenizer = choose_tokenizer(args, source.tokenizer, source.model.vocab_size)
    keys = () if options.api_key_file is None else read_keys(Path(options.api_key_file))
    served = _served(args, options, tokenizer, source.model.max_position_embeddings)
    review = cli.section_from(args, ReviewOptions)
    review.check()
    reviewer, playground = None, None
    if launch.rank == 0:
        reviewer = Reviewer(review, tokenizer) if review.attribution else None
        playground = _playground(args, served, reviewer)
    listener = bind(options) if launch.rank == 0 else None

    import torch.distributed as dist

    from megatron.serving.channel import Channel
    from megatron.serving.worker import Worker, follow

    loaded, channel = load(args, launch, source), Channel(launch)

    def make_engine() -> Engine:
        return loaded.engine(tokenizer, options.batch_size)

    if listener is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the first process gets it too, and says when
        engine = make_engine()
        channel.meet()
        try:
            follow(engine, channel)
            code = 0
        except LostPeer:  # whoever started the processes says which one
            code = cli.EXIT_LOST_PEER
    else:
        from megatron.serving.app import app
        from megatron.serving.http_server import serve
        from megatron.serving.service import Service

        worker = Worker(make_engine, channel)
        service = Service(worker, served, options)
        application = app(service, keys, playground, reviewer)
        channel.meet()
        code = serve(application, service, worker, listener, loaded.context.device)
    if code != cli.EXIT_LOST_PEER:  # a group may wait for a process that it lost
        dist.destroy_process_group()
    return code


def _served(
    args: argparse.Namespace, options: ServingOptions, tokenizer: Tokenizer, num_positions: int
) -> ServedModel:
    from megatron.serving.completion_call import ServedModel
    from megatron.training.curves import name_of_run

    return ServedModel(
        options.served_model_name or name_of_run(args.load),
        tokenizer,
        num_positions,
        max_samples=options.client_size,
        max_tokens=options.max_request_tokens,
        order=options.order,
        reads_sentinels=options.sentinels,
    )


def _playground(
    args: argparse.Namespace, model: ServedModel, reviewer: Reviewer | None
) -> Playground:
    """Give what the page shows beside a text. Raises ConfigError for a run that is not there."""
    from megatron.serving.playground import Playground

    run = cli.section_from(args, PlaygroundOptions).training_run
    if run is not None and not Path(run).is_dir():
        raise ConfigError(f"--training-run {run} is no folder; give a run's")
    metrics = None if run is None else Path(run) / METRICS_FILE
    return Playground(model, None if reviewer is None else reviewer.attribution, metrics)


if __name__ == "__main__":
    cli.run_tool(main)
