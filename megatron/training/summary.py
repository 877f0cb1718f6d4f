"""What a run will do, in a few lines: printed by a dry run on a laptop, logged by a real one. No torch."""

from __future__ import annotations

from megatron.layer_split import resolve_schedule, split_layers
from megatron.model.flops import flops_per_token, num_parameters
from megatron.training.inputs import Inputs


def summarize(inputs: Inputs, world_size: int) -> list[str]:
    """Describe model, layout, batch and length of a run on world_size processes, a line each."""
    config = inputs.config
    parallel, training, model = config.parallel, config.training, config.model
    dp_size = parallel.data_parallel_size(world_size)
    batch = config.global_batch_size(dp_size)
    samples = config.num_samples(dp_size)
    tokens = samples * config.data.seq_length
    cp_size = parallel.context_parallel_size
    context = f"{cp_size} context x " if cp_size > 1 else ""
    flops = tokens * flops_per_token(model, config.data.seq_length).full
    return [
        f"model      {num_parameters(model):,} parameters: {model.num_layers} layers of width "
        f"{model.hidden_size}, {model.num_attention_heads} heads on {model.query_groups} "
        f"key/value heads, vocabulary {model.vocab_size:,} (padded {model.padded_vocab_size:,})",
        f"layout     {world_size} processes = {parallel.pipeline_model_parallel_size} pipeline x "
        f"{dp_size} data x {context}{parallel.tensor_model_parallel_size} tensor parallel, "
        f"{config.precision.compute_dtype}",
        *_describe_split(inputs),
        f"batch      {batch} sequences of {config.data.seq_length} = "
        f"{batch * config.data.seq_length:,} tokens a step, "
        f"{batch // (training.micro_batch_size * dp_size)} micro-batches a process",
        f"run        {samples:,} samples, {tokens:,} tokens, {flops:.3g} FLOP",
        f"validation {', '.join(inputs.datasets.valid) or 'none'}",
    ]


def _describe_split(inputs: Inputs) -> list[str]:
    """Say what a pipeline's stages hold and in which order they run, in one line or none."""
    split = split_layers(inputs.config.model.num_layers, inputs.config.parallel)
    if len(split) == 1:
        return []
    schedule = resolve_schedule(len(split), inputs.config.parallel)
    return [f"stages     {', '.join(str(len(layers)) for layers in split)} layers, {schedule}"]
