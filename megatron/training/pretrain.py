"""Builds a run in reading order, trains it, and leaves. The whole way of a training job stands here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from megatron.checkpoint.files import encode_json, replace_durably, writing
from megatron.checkpoint.layout import CONFIG_FILE
from megatron.checkpoint.lock import FolderLock
from megatron.config import Config, to_json
from megatron.data.gpt_dataset import Dataset
from megatron.data.loader import BatchLoader, DocumentResets
from megatron.errors import TrainingError
from megatron.kernels.registry import Kernels
from megatron.layer_split import StageLayers, assign_stages, resolve_schedule
from megatron.logging import get_logger
from megatron.model.flops import flops_per_token
from megatron.model.stage import build_stage
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.loss_scale import LossScale
from megatron.parallel.agreement import on_first_rank
from megatron.parallel.context import ParallelContext, initialize_distributed
from megatron.parallel.data_parallel import DataParallel, shard_data_parallel
from megatron.parallel.launch import Launch
from megatron.parallel.pipeline import (
    BoundaryShape,
    Pipeline,
    TiedEmbedding,
    lost_split,
    splits_backward,
)
from megatron.tokenizer import chat_template
from megatron.training.batch_schedule import BatchSchedule
from megatron.training.evaluate import Validation
from megatron.training.inputs import Inputs
from megatron.training.kernel_choice import choose_accumulation, choose_run_kernels
from megatron.training.kernel_record import record_of, tell_changes
from megatron.training.marks import Marks
from megatron.training.metrics import MetricsWriter
from megatron.training.replicas import ReplicaCheck
from megatron.training.rollback import Rollback
from megatron.training.run import Outcome, Run
from megatron.training.run_state import RunTensors, restore
from megatron.training.saver import RunSaver
from megatron.training.spike import SpikeGuard
from megatron.training.start import Start
from megatron.training.step import StepParts
from megatron.training.summary import summarize
from megatron.training.throughput import Throughput, peak_flops
from megatron.training.train import train
from megatron.training.verified_start import verified_start
from megatron.training.watchdog.watch import Watch

logger = get_logger(__name__)

TIED_WEIGHT = "embedding.word_embeddings.weight"


def pretrain(inputs: Inputs, start: Start, launch: Launch) -> Outcome:
    """Train a model from its inputs to its last checkpoint. Every process of the launch calls it."""
    for line in summarize(inputs, launch.world_size):
        logger.info(line)
    marks = Marks()
    with Watch(inputs.config, launch, marks) as watch:
        device = initialize_distributed(inputs.config.parallel, launch)
        context = ParallelContext.create(inputs.config.parallel, launch.world_size, device)
        watch.connect(context)
        with _holding_folder(inputs.config.checkpoint.save):
            watch.begin_heartbeat()
            run = build_run(inputs, start, context, marks)
            try:
                watch.outcome = outcome = train(run, launch.started)
            except TrainingError:  # which every process raises
                run.saver.finish()
                raise
            marks.enter("leave")
            run.close()
            dist.barrier()  # nobody leaves while another still reads from it
            # Not after an error: peers may wait in a collective, and ending the groups could wait for them.
            dist.destroy_process_group()
    return outcome


@contextmanager
def _holding_folder(save: str | None) -> Iterator[None]:
    """Keep other runs from writing to --save. Collective over the world: the first process locks it for all."""
    locks: list[FolderLock] = []
    if save is not None:
        on_first_rank(lambda: locks.append(FolderLock(Path(save))))
    yield
    # Not after an error: threads may still write, and the lock goes with the process.
    for lock in locks:
        lock.release()


def build_run(
    inputs: Inputs, start: Start, context: ParallelContext, marks: Marks | None = None
) -> Run:
    """Make model, data parallel shards, optimizer, pipeline, data and logs, in this order. Collective.

    marks: those that a watch looks at.
    """
    config, marks = inputs.config, marks or Marks()
    marks.enter("load")
    start = verified_start(inputs, start, context.world_size)
    kernels = choose_run_kernels(config, context.device)
    accumulation = choose_accumulation(config, context.device)
    choices = (*kernels.choices, accumulation)
    for choice in choices:
        logger.info(f"kernel     {choice.operation}: {choice.name} ({choice.reason})")
    record = record_of(choices, context.device)
    tell_changes(start, record)
    stages = assign_stages(config.model.num_layers, config.parallel, context.pp_rank)
    modules, data_parallel = _build_stages(
        config, context, stages, kernels, fuses=accumulation.name == "fused"
    )
    parameters = _parameters_of(modules)
    tied_embedding = _tied_embedding(config, context, stages, modules)

    tensors = RunTensors(
        parameters,
        AdamW(parameters, config.optimizer),
        LossScale.create(config.precision),
        start.schedule,
    )
    marks.enter("load")
    progress = restore(start, tensors)
    marks.enter("start", progress.iteration, progress.consumed_samples)
    if tied_embedding is not None:
        tied_embedding.copy_weight()

    global_batch_size = config.global_batch_size(context.dp_size)
    writer = None
    on_first_rank(lambda: describe_run(inputs))
    if context.rank == 0:
        writer = MetricsWriter(config, start_iteration=progress.iteration)
    pipeline = _pipeline(config, context, stages, modules, data_parallel)
    datasets, resets = inputs.datasets, _document_resets(inputs)
    spikes = SpikeGuard(config.training, progress.spikes)
    saver = RunSaver(
        config,
        inputs.contents,
        tensors,
        marks,
        kernels=record,
        last_saved=progress.iteration,
    )
    return Run(
        config=config,
        parts=_step_parts(config, pipeline, context, tensors, tied_embedding),
        dataset=datasets.train,
        loader=_loader(config, datasets.train, context, config.data.num_workers, resets, stages),
        batches=BatchSchedule.create(config.training, global_batch_size),
        validation=_validation(config, datasets.valid, context, resets, stages),
        test=_validation(config, datasets.logged_test, context, resets, stages),
        progress=progress,
        tensors=tensors,
        spikes=spikes,
        rollback=Rollback(
            config,
            start,
            tensors,
            tied_embedding,
            spikes,
            saver,
            datasets.train,
            writer,
            marks,
        ),
        saver=saver,
        replicas=_replica_check(config, context, tensors),
        throughput=_throughput(config, context),
        writer=writer,
        marks=marks,
    )


def _build_stages(
    config: Config,
    context: ParallelContext,
    stages: list[StageLayers],
    kernels: Kernels,
    *,
    fuses: bool,
) -> tuple[list[nn.Module], list[DataParallel]]:
    """Make this process's stages, and what shares their weights and gradients out. fuses: products sum gradients."""
    compute_dtype = getattr(torch, config.precision.compute_dtype)
    modules: list[nn.Module] = []
    data_parallel: list[DataParallel] = []
    for stage in stages:
        module = build_stage(config, context, stage, kernels)
        sharded = shard_data_parallel(module, list(module.layers.values()), context, compute_dtype)
        if fuses:
            sharded.fuse_gradient_accumulation()
        modules.append(module)
        data_parallel.append(sharded)
    return modules, data_parallel


def _parameters_of(modules: list[nn.Module]) -> dict[str, nn.Parameter]:
    """Name what this process trains. Of a name that two stages share, the tied embedding's, the second follows the first."""
    parameters: dict[str, nn.Parameter] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            parameters.setdefault(name, parameter)
    return parameters


def _validation(
    config: Config,
    datasets: dict[str, Dataset],
    context: ParallelContext,
    resets: DocumentResets | None,
    stages: list[StageLayers],
) -> Validation:
    """Prepare the validation of some sets; of none with --eval-iters 0."""
    num_batches = config.training.eval_iters
    loaders = {
        name: _loader(config, dataset, context, config.data.valid_num_workers, resets, stages)
        for name, dataset in datasets.items()
        if num_batches > 0
    }
    return Validation(loaders, num_batches, config.global_batch_size(context.dp_size))


def _document_resets(inputs: Inputs) -> DocumentResets | None:
    data = inputs.config.data
    if not (data.reset_position_ids or data.reset_attention_mask):
        return None
    return DocumentResets(
        inputs.tokenizer.eod,
        positions=data.reset_position_ids,
        attention=data.reset_attention_mask,
    )


def _loader(
    config: Config,
    dataset: Dataset,
    context: ParallelContext,
    num_workers: int,
    resets: DocumentResets | None,
    stages: list[StageLayers],
) -> BatchLoader:
    """Make the loader of one set; without an end of the pipeline it reads only to see where documents end."""
    is_end = any(stage.is_first or stage.is_last for stage in stages)
    has_rotary = config.model.has_rotary_positions
    needs_documents = resets is not None and (resets.attention or (resets.positions and has_rotary))
    return BatchLoader(
        dataset if is_end or needs_documents else None,
        micro_batch_size=config.training.micro_batch_size,
        dp_rank=context.dp_rank,
        dp_size=context.dp_size,
        num_workers=num_workers,
        resets=resets,
        positions=_positions(config, context) if context.cp.size > 1 else None,
        device=context.device,
    )


def _positions(config: Config, context: ParallelContext) -> torch.Tensor:
    """Give the positions of every sample that this process holds, int64 [s/c]."""
    return context.cp.positions(config.data.seq_length // context.cp.size)


def _tied_embedding(
    config: Config, context: ParallelContext, stages: list[StageLayers], modules: list[nn.Module]
) -> TiedEmbedding | None:
    """Join the copies of an embedding that the ends of a pipeline share."""
    if context.pp_size == 1 or config.model.untie_embeddings_and_output_weights:
        return None
    copies = [
        module.get_parameter(TIED_WEIGHT)
        for stage, module in zip(stages, modules, strict=True)
        if stage.is_first or stage.is_last
    ]
    group = None if config.parallel.has_stages_in_v else context.pipeline_ends
    return TiedEmbedding(copies, group)


def _pipeline(
    config: Config,
    context: ParallelContext,
    stages: list[StageLayers],
    modules: list[nn.Module],
    data_parallel: list[DataParallel],
) -> Pipeline:
    """Make what runs micro-batches through the stages. Collective over pp."""
    if (loss := lost_split(config)) is not None:
        logger.info(loss)
    seq_length = config.data.seq_length // context.cp.size
    is_split = config.parallel.sequence_parallel
    return Pipeline(
        stages,
        modules,
        data_parallel,
        context,
        BoundaryShape(
            config.training.micro_batch_size,
            seq_length,
            (
                seq_length // context.tp_size if is_split else seq_length,
                config.training.micro_batch_size,
                config.model.hidden_size,
            ),
            getattr(torch, config.precision.compute_dtype),
        ),
        schedule=resolve_schedule(stages[0].num_stages, config.parallel),
        splits_backward=splits_backward(config),
    )


def _step_parts(
    config: Config,
    pipeline: Pipeline,
    context: ParallelContext,
    tensors: RunTensors,
    tied_embedding: TiedEmbedding | None,
) -> StepParts:
    """Assemble what a step works on."""
    # The last stage's copy is the same logical weight: it counts once in the norm of the gradient.
    is_copy = tied_embedding is not None and not pipeline.has_first_stage
    return StepParts(
        context=context,
        pipeline=pipeline,
        optimizer=tensors.optimizer,
        schedule=tensors.schedule,
        loss_scale=tensors.loss_scale,
        parameters=[p for n, p in tensors.parameters.items() if not (is_copy and n == TIED_WEIGHT)],
        tied_embedding=tied_embedding,
        seq_length=config.data.seq_length,
        positions=_positions(config, context),
        window_size=config.model.window_size,
        clip_grad=config.optimizer.clip_grad,
    )


def _replica_check(config: Config, context: ParallelContext, tensors: RunTensors) -> ReplicaCheck:
    is_tied = not config.model.untie_embeddings_and_output_weights
    has_two_ends = context.pp_size > 1 and not config.parallel.has_stages_in_v
    return ReplicaCheck(
        tensors.all,
        context,
        interval=config.training.check_weight_hash_across_dp_replicas_interval,
        save_interval=config.checkpoint.save_interval,
        joined=TIED_WEIGHT if is_tied and has_two_ends else None,
    )


def _throughput(config: Config, context: ParallelContext) -> Throughput:
    is_gpu = context.device.type == "cuda"
    name = torch.cuda.get_device_name(context.device) if is_gpu else "cpu"
    flops = flops_per_token(config.model, config.data.seq_length)
    return Throughput(
        context.world_size,
        flops,
        peak_flops(name, config.precision.compute_dtype),
    )


def describe_run(inputs: Inputs) -> None:
    """Write the options and the tokenizer beside the checkpoints: the run's folder is all an export needs."""
    if inputs.config.checkpoint.save is None:
        return
    save = Path(inputs.config.checkpoint.save)
    folder = save / "tokenizer"
    with writing(folder):
        files = inputs.tokenizer.files()
        if inputs.datasets.chat_template is not None:
            files[chat_template.FILE] = encode_json(inputs.datasets.chat_template.to_json())
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():  # it may have been read from here, and be the only copy
        replace_durably(folder / name, content)
    replace_durably(save / CONFIG_FILE, encode_json(to_json(inputs.config)))
