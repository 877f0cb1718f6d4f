"""examples/pretrain_starcoder.slurm under a real Slurm of two nodes: what a cluster does to a run, and what it makes of it."""

import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron.checkpoint.reader import CheckpointReader
from megatron.config import from_json
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from megatron.training.train import train
from tests.grid import grid_of
from tests.slurm.cluster import Slurm, obstacle, running_slurm, wait_until
from tests.training.corpus import Corpus
from tests.training.runs import read_metrics
from tests.world import Worlds, launcher_environment

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"Slurm: {obstacle()}")
NUM_STEPS = 160
# MODEL=1b, but for its size: two data parallel processes, one a node.
FLAGS = f"""--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32
--max-position-embeddings 32 --attention-dropout 0 --hidden-dropout 0 --global-batch-size 4
--train-iters {NUM_STEPS} --lr-decay-iters {NUM_STEPS} --lr-warmup-iters 2 --save-interval 40
--eval-interval {NUM_STEPS} --log-interval 1 --num-workers 0 --make-vocab-size-divisible-by 16""".split()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # pytest's folders are too long a name for a socket
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder, running_slurm(Path(folder)) as it:
        yield it


def variables(corpus: Corpus, run_dir: Path) -> dict[str, str]:
    environment = launcher_environment() | {
        "MODEL": "1b",
        "RUN_DIR": str(run_dir),
        "DATA_PATH": str(corpus.train),
        "TOKENIZER_FILE": str(corpus.tokenizer),
        "GPUS_PER_NODE": "1",
        "TRAIN_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_")}


def submit(slurm: Slurm, corpus: Corpus, run_dir: Path) -> str:
    run_dir.mkdir()
    sizes = ("--nodes=2", "--gpus-per-node=0", f"--chdir={ROOT}", f"--output={run_dir}/job.log")
    script = str(ROOT / "examples" / "pretrain_starcoder.slurm")
    command = ("sbatch", "--parsable", *sizes, script, *FLAGS)
    return slurm(*command, environment=variables(corpus, run_dir)).strip()


def wait_for_steps(run_dir: Path, count: int) -> None:
    metrics = run_dir / "checkpoints" / "metrics.jsonl"
    wait_until(
        lambda: metrics.exists() and metrics.read_text().count("grad_norm") >= count,
        f"{count} steps in {run_dir}; {_log(run_dir)}",
    )


def _log(run_dir: Path) -> str:
    log = run_dir / "job.log"
    return log.read_text()[-3000:] if log.exists() else "no log"


def processes_of(run_dir: Path) -> dict[int, list[str]]:
    """Give {pid: command} of the processes that have a run's folder among their arguments."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if any(str(run_dir) in word for word in command) and int(entry.name) != os.getpid():
            found[int(entry.name)] = command
    return found


def train_like(rank: int, other: Path, save: Path) -> None:
    """Train with the options of another run into a folder of our own, undisturbed."""
    saved = from_json(json.loads((other / "config.json").read_text()))
    places = dataclasses.replace(saved.checkpoint, save=str(save), load=str(save))
    logs = dataclasses.replace(saved.logging, tensorboard_dir=None, structured_logs=False)
    inputs = open_inputs(dataclasses.replace(saved, checkpoint=places, logging=logs), 2)
    run = build_run(inputs, plan_start(inputs, 2), grid_of(inputs.config.parallel))
    assert train(run) == "finished"
    run.close()


def test_a_killed_and_preempted_job_ends_as_an_undisturbed_run(
    slurm: Slurm, world: Worlds, corpus: Corpus, tmp_path: Path
) -> None:
    run_dir = tmp_path / "disturbed"
    job = submit(slurm, corpus, run_dir)
    wait_for_steps(run_dir, 45)
    worker = next(
        pid
        for pid, command in processes_of(run_dir).items()
        if any(word.endswith("pretrain_gpt.py") for word in command[:3])
    )
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: "was killed by SIGKILL; goes on from" in _log(run_dir), "a restart")
    steps = (run_dir / "checkpoints" / "metrics.jsonl").read_text().count("grad_norm")
    wait_for_steps(run_dir, steps + 5)
    slurm("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@300 near the time limit
    wait_until(lambda: "requeued: asked to leave" in _log(run_dir), "a requeue")
    assert "left after step" in _log(run_dir)

    reference = tmp_path / "whole"
    world(2).run(train_like, run_dir / "checkpoints", reference / "checkpoints")
    wait_until(lambda: slurm.state(job) == "COMPLETED", f"the end; {_log(run_dir)}")
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    losses = [
        {step: (row["lm_loss"], row["grad_norm"]) for step, row in read_metrics(save)[0].items()}
        for save in (run_dir / "checkpoints", reference / "checkpoints")
    ]
    assert len(losses[0]) == NUM_STEPS and losses[0] == losses[1]
    name = f"checkpoints/iter_{NUM_STEPS:07d}"
    readers = [CheckpointReader.open(folder / name) for folder in (run_dir, reference)]
    for tensor in readers[1].names():
        assert torch.equal(*(reader.read(tensor) for reader in readers)), tensor
    logs = sorted(path.name for path in (run_dir / "logs").iterdir())
    assert logs == [f"job-{job}-node-{number}.log" for number in (0, 1)]


def test_a_cancelled_job_saves_and_leaves_nothing_running(
    slurm: Slurm, corpus: Corpus, tmp_path: Path
) -> None:
    run_dir = tmp_path / "cancelled"
    job = submit(slurm, corpus, run_dir)
    wait_for_steps(run_dir, 5)
    assert processes_of(run_dir)
    slurm("scancel", job)
    wait_until(lambda: slurm.state(job) == "CANCELLED", f"the end; {_log(run_dir)}")
    assert processes_of(run_dir) == {}
    assert (run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").exists()
    assert "requeued: asked" not in _log(run_dir)
