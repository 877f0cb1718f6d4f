"""What a launch would do, said in a second on a laptop: every check of a real start, and nothing started."""

from __future__ import annotations

from megatron import logging as megatron_logging
from megatron.config import Config
from megatron.model.flops import flops_per_token, num_parameters
from megatron.training.inputs import open_inputs


def describe(config: Config, world_size: int | None) -> str:
    """Check a launch on world_size processes (default: one model replica) and describe it in lines.

    Raises ConfigError or DataError as the launch would.
    """
    megatron_logging.configure()
    if world_size is None:
        world_size = config.parallel.model_parallel_size
    inputs = open_inputs(config, world_size)
    config = inputs.config
    parallel, training = config.parallel, config.training
    dp_size = parallel.data_parallel_size(world_size)
    batch = config.global_batch_size(dp_size)
    tokens_a_step = batch * config.data.seq_length
    samples = training.train_samples or (training.train_iters or 0) * batch
    parameters = num_parameters(config.model)
    flops = flops_per_token(config.model, config.data.seq_length)
    tokens = samples * config.data.seq_length
    lines = [
        f"model      {parameters:,} parameters, {config.model.num_layers} layers of "
        f"{config.model.hidden_size}, vocabulary {config.model.padded_vocab_size:,}",
        f"layout     {world_size} processes = {parallel.pipeline_model_parallel_size} pipeline x "
        f"{dp_size} data x {parallel.tensor_model_parallel_size} tensor parallel, "
        f"{config.precision.compute_dtype}",
        f"batch      {batch} sequences of {config.data.seq_length} = {tokens_a_step:,} tokens a step, "
        f"{batch // (training.micro_batch_size * dp_size)} micro-batches a process",
        f"run        {samples:,} samples, {tokens:,} tokens, {tokens * flops.full:.3g} FLOP",
        f"validation {', '.join(inputs.datasets.valid) or 'none'}",
        "all checks passed; nothing was started",
    ]
    return "\n".join(lines)
