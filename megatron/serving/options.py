"""Where a server listens and how much it takes on. Knows nothing of torch."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from megatron.option_field import check_bounds, option, require


@dataclass(frozen=True)
class ServingOptions:
    """Who may ask, for how much, and for how long."""

    host: str = option("127.0.0.1", "address to listen at; any but this machine's own needs keys")
    port: int = option(8000, "0: any that is free", minimum=0, maximum=65535)
    api_key_file: str | None = option(
        None, "file of the keys that clients have to give, one a line", metavar="FILE"
    )
    served_model_name: str | None = option(
        None, "what clients call the model (default: the name of the run's folder)", metavar="NAME"
    )
    order: Literal["psm", "spm"] = option("psm", "of an infilling's parts, unless a request says")
    sentinels: bool = option(
        False, "<fim_prefix> and the like in a prompt are sentinels, unless a request says"
    )
    batch_size: int = option(16, "samples that are written at once", minimum=1, maximum=4096)
    queue_size: int = option(
        256, "samples that may wait beside them; what is more is answered with 429", minimum=0
    )
    client_queue_size: int = option(
        64, "of them, of one client: a key, or an address; likewise", minimum=0
    )
    max_request_tokens: int = option(
        131_072, "of a request: its prompts, and all that it may have written", minimum=1
    )
    max_body_bytes: int = option(4_194_304, "of a request", minimum=1024)
    max_connections: int = option(256, "clients at once", minimum=1)
    request_seconds: float = option(600.0, "for a request, waiting and writing", above=0.0)
    body_seconds: float = option(30.0, "for a client to send its request's body", above=0.0)
    header_seconds: float = option(
        10.0, "for a client to send a request's headers, or its next one", above=0.0
    )
    stall_seconds: float = option(30.0, "for a client to read what it asked for", above=0.0)
    grace: float = option(
        20.0, "seconds for requests in work to end after SIGTERM", minimum=0.0, metavar="SECONDS"
    )
    quiet: bool = option(False, "do not write a line for each request into the log")

    def check(self) -> None:
        """Raise ConfigError for a number outside its bounds, or an address that needs keys and has none."""
        check_bounds(self)
        require(
            self.is_local or self.api_key_file is not None,
            f"--host {self.host} lets other machines ask; give --api-key-file FILE with a key a line, or leave "
            f"--host out to serve this machine alone",
        )

    @property
    def client_size(self) -> int:
        """Samples of one client, those that are written included."""
        return self.batch_size + min(self.client_queue_size, self.queue_size)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class PlaygroundOptions:
    """What the page shows beside a text."""

    training_run: str | None = option(
        None, "folder of a training run, whose metrics.jsonl is shown", metavar="DIR"
    )
