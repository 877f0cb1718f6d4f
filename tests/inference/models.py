"""Tiny models to generate with, and what they say by the forward pass of training."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from megatron.convert.source import ModelSource
from megatron.inference.engine import Engine
from megatron.inference.load import load_model
from megatron.inference.options import SamplingOptions
from megatron.inference.request import Completion, Request
from megatron.inference.runner import Runner
from megatron.model.gpt import GPTModel
from megatron.parallel.context import ParallelContext
from tests.convert.runs import MULTI_HEAD, MULTI_QUERY, STARCODER2, make_run
from tests.grid import grid

TOLERANCE = 1e-5
NUM_POSITIONS = 64
ARCHITECTURES = {
    "multi-query": MULTI_QUERY,
    "multi-head": MULTI_HEAD,
    "grouped, rotary, window": STARCODER2,
    "rotary, no bias, own head": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "position_embedding_type": "rope",
        "disable_bias_linear": True,
        "untie_embeddings_and_output_weights": True,
    },
}


def make_model(root: Path, **changes) -> Path:
    """Write a run with a checkpoint of 280 tokens and a tokenizer."""
    make_run(root, **({"max_position_embeddings": NUM_POSITIONS} | changes))
    return root


def open_engine(
    path: Path, context: ParallelContext | None = None, *, dtype=torch.float32, **options
) -> Engine:
    """Load a model into an engine of 4 rows whose chunks have 16 tokens."""
    context = context or grid()
    source = ModelSource.open(path)
    model = load_model(source.model, source.tensors, context, dtype)
    runner = Runner(model, context, max_rows=options.pop("max_rows", 4))
    return Engine(runner, source.tokenizer, **({"prefill_tokens": 16} | options))


def random_prompt(size: int, seed: int = 0) -> tuple[int, ...]:
    """Ids of text, none of a sentinel."""
    generator = torch.Generator().manual_seed(1000 * size + seed)
    return tuple(torch.randint(19, 280, (size,), generator=generator).tolist())


def request(
    name: str, prompt: tuple[int, ...], num_samples: int = 1, client: str = "", **options
) -> Request:
    """Ten tokens that nothing ends, unless told otherwise."""
    options = SamplingOptions(**({"max_new_tokens": 10, "ignore_eod": True} | options))
    return Request(name, prompt, options, num_samples, client=client)


class FullForward:
    """The forward pass of training, in fp32 and with its reference of attention."""

    def __init__(self, path: Path) -> None:
        source = ModelSource.open(path)
        self.vocab_size = source.model.vocab_size
        config = dataclasses.replace(source.model, attention_backend="explicit")
        self._model = GPTModel(
            config,
            grid(),
            layers=range(config.num_layers),
            is_first=True,
            is_last=True,
            seed=0,
            sequence_parallel=False,
        ).eval()
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                rows = slice(0, len(parameter))
                parameter.to_local().copy_(source.tensors.read(f"model.{name}", rows))

    def logits(self, ids: tuple[int, ...]) -> Tensor:
        """[s, v]"""
        with torch.no_grad():
            return self._model(torch.tensor([ids]))[:, 0, : self.vocab_size]

    def check(self, prompt: tuple[int, ...], completion: Completion) -> None:
        """Hold the log-probabilities of a completion, and of its prompt if given, against all at once."""
        expected = self.logits(prompt + completion.token_ids).log_softmax(dim=-1)
        scores = completion.scores
        assert len(scores) == len(completion.token_ids)
        places = range(len(prompt) - 1, len(expected) - 1)
        for place, score in [
            *zip(places, scores, strict=True),
            *enumerate(completion.prompt_scores),
        ]:
            assert abs(float(expected[place, score.token]) - score.logprob) < TOLERANCE
            for token, logprob in score.top:
                assert abs(float(expected[place, token]) - logprob) < TOLERANCE
