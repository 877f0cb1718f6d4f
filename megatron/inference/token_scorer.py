"""How likely a model finds a text: the log-probability of each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from megatron.inference.runner import Runner

CHUNK_TOKENS = 512  # whose logits are there at once: 100 MB in fp32 of StarCoder's vocabulary


class TokenScorer:
    """Reads texts, one at a time. In one process."""

    def __init__(self, runner: Runner, *, chunk_tokens: int = CHUNK_TOKENS) -> None:
        self._runner = runner
        self._chunk_tokens = chunk_tokens

    def log_probabilities(self, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Give, in nats, that of each token after the first, [s - 1], by those before it. Synchronises the device."""
        parts = []
        for start in range(0, len(ids) - 1, self._chunk_tokens):
            stop = min(start + self._chunk_tokens, len(ids) - 1)
            logits = self._runner.prefill([ids[start:stop]], 0, start, "all")
            assert logits is not None, "one process has all stages"
            targets = torch.tensor(ids[start + 1 : stop + 1], device=logits.device)
            with torch.inference_mode():
                losses = cross_entropy(logits.float(), targets, reduction="none")  # fp32
                parts.append(-losses.double().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0)
