"""What the launcher says about this process: the one file below `tools/` that reads the environment. No torch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from megatron.errors import ConfigError, MegatronError


@dataclass(frozen=True)
class Launch:
    """This process among those that torchrun started; a plain `python` start is a world of one."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    has_rendezvous: bool = False  # MASTER_ADDR and MASTER_PORT say where the others are
    restart: str | None = None  # why this is not the first try
    parent_pid: int | None = None  # torchrun, if that started it: nobody else is left without it
    started: float = field(default_factory=time.monotonic, compare=False)

    @classmethod
    def from_environment(cls) -> Launch:
        """Read torchrun's variables. ConfigError for several tasks of srun that torchrun did not start."""
        if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise ConfigError(
                "srun started several processes without torchrun: each would train alone into the same "
                "folder; use srun with one task a node that calls torchrun (examples/*.slurm)"
            )
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            has_rendezvous={"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ),
            restart=os.environ.get("LAUNCH_RESTART"),
            parent_pid=os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None,
        )

    def has_to_say(self, error: MegatronError) -> bool:
        """Say whether an error that this process raises is its own to tell people, or another process says it."""
        if error.is_shared:
            return self.rank == 0
        # of an option the processes of a node find the same
        return self.local_rank == 0 or not isinstance(error, ConfigError)
