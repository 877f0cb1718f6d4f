"""What the examples share: when a Slurm job requeues itself, with a scontrol that only says what it was asked."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCONTROL = '#!/bin/sh\nif [ "$1" = show ]; then echo "JobState=$STATE Reason=None"; else echo "$*" >&2; fi\n'


@pytest.mark.parametrize(
    ("code", "asked", "saved", "requeues", "state", "is_requeued"),
    [
        (0, "no", "none", 0, "RUNNING", False),
        (2, "no", "40", 0, "RUNNING", False),  # a mistake
        (3, "no", "40", 0, "RUNNING", False),  # finished, and forgot
        (75, "yes", "none", 9, "RUNNING", True),  # left because it was asked to
        (138, "yes", "none", 9, "RUNNING", True),  # asked before anything could hear it
        (75, "yes", "40", 0, "CANCELLED", False),
        (1, "no", "40", 9, "RUNNING", True),  # got further
        (1, "no", "none", 2, "RUNNING", True),
        (1, "no", "none", 3, "RUNNING", False),
        (1, "yes", "none", 3, "RUNNING", False),  # asked, and could not save: it might never
    ],
)
def test_a_job_requeues_itself_where_that_helps(
    tmp_path: Path, code: int, asked: str, saved: str, requeues: int, state: str, is_requeued: bool
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    if saved != "none":
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(saved)
    script = (
        f"root=. python=python run_dir={tmp_path} save={tmp_path}; source examples/launcher.sh; "
        f"is_asked={asked}; requeue_after {code} none"
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(requeues),
        "STATE": state,
    }
    result = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert ("requeue 7" in result.stderr) == is_requeued, result.stderr


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 4), ("0,2", 2), ("1", 1), ("", 0), ("-1", 0), ("0,1,2,3,4", 4)]
)
def test_there_are_as_many_processes_as_gpus_they_may_see(
    tmp_path: Path, visible: str | None, count: int
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\nfor n in 0 1 2 3; do echo \"GPU $n: one\"; echo '  MIG 1g.18gb Device 0: (UUID: MIG-GPU-1)'; done\n"
    )
    smi.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("GPUS_PER_NODE", None)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    script = "source examples/launcher.sh; count_processors; echo $num_processes"
    result = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.stdout == f"{count}\n", result.stderr
