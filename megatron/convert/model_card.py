"""README.md of an exported model: what it is, what it was trained on, how to use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.convert.hf_architecture import Architecture
from megatron.convert.imported import CONVERTED_FROM
from megatron.convert.source import RunSource
from megatron.options import DataConfig
from megatron.tokenizer.special_tokens import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, FIM_TOKENS

_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- code
- {model_type}
license: other
---

# A {size} parameter model of source code

<!-- Name the model, and put the licence under which you publish it into the lines above. Source code keeps the
licence of its authors: say here which licences the training data has, and how its attribution is searched. -->

A decoder-only transformer of the StarCoder family (`{class_name}`).

| | |
|---|---|
"""

_COMPLETION = """
## Completion

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)

inputs = tokenizer("def fibonacci(n):", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```
"""

_INFILLING = """
## Infilling

{rate:.0%} of the documents were seen as prefix, suffix and middle. What follows `{middle}` is what belongs between
the other two; it ends with `{eod}`.

```python
prefix, suffix = "def fibonacci(n):\\n    ", "\\n    return a\\n"
prompt = "{start}" + prefix + "{suffix}" + suffix + "{middle}"
inputs = tokenizer(prompt, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(output, skip_special_tokens=True))
```
"""

_CONVERSATION = """
## Conversation

```python
messages = [{"role": "user", "content": "Write a function that adds two numbers."}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
```
"""

_LIMITS = """
## Limits

{what} Its output may be wrong or unsafe to run, and it may repeat training data word for word, whose licence then
applies.
"""
_BASE = "The model continues source code and has not been trained to follow instructions."
_TUNED = "The model was tuned on conversations, which are all that it knows of instructions and refusals."


def model_card(
    source: RunSource, architecture: Architecture, num_parameters: int, dtype: torch.dtype
) -> str:
    """Write the card from what the run left: its options, its state and its metrics."""
    rows = [
        ("parameters", f"{num_parameters:,}"),
        ("precision of the files", str(dtype).removeprefix("torch.")),
        *_architecture(source),
        *_training(source),
    ]
    head = _HEAD.format(
        size=_short(num_parameters),
        model_type=architecture.model_type,
        class_name=architecture.class_name,
    )
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    what = _BASE if source.chat_template() is None else _TUNED
    return head + table + _usage(source) + _LIMITS.format(what=what)


def _architecture(source: RunSource) -> list[tuple[str, str]]:
    model = source.config.model
    groups = model.query_groups
    kinds = {1: "multi-query", model.num_attention_heads: "multi-head"}
    kind = kinds.get(groups, f"{groups} key/value heads")
    if model.window_size is not None:
        kind += f", window of {model.window_size:,} tokens"
    positions = "rotary" if model.has_rotary_positions else "learned"
    return [
        ("layers, width, MLP", f"{model.num_layers}, {model.hidden_size}, {model.ffn_size}"),
        ("attention", f"{model.num_attention_heads} heads of {model.head_dim}, {kind}"),
        ("context", f"{model.max_position_embeddings:,} tokens, {positions} positions"),
        ("vocabulary", f"{model.vocab_size:,} tokens"),
    ]


def _training(source: RunSource) -> list[tuple[str, str]]:
    config, state = source.config, source.reader.state
    rows = []
    if CONVERTED_FROM in state:
        rows.append(("converted from", str(state[CONVERTED_FROM])))
    if source.reader.iteration > 0:
        rows.append(("steps", f"{source.reader.iteration:,}"))
    samples = state.get("consumed_samples")
    if isinstance(samples, int) and samples > 0:
        rows.append(("tokens seen", f"{samples * config.data.seq_length:,}"))
    rows.append(("trained in", config.precision.compute_dtype))
    names = data_names(config.data)
    if names:
        rows.append(("data", ", ".join(names)))
    if config.data.fim_rate > 0:
        rows.append(("fill-in-the-middle rate", f"{config.data.fim_rate:g}"))
    losses = source.losses()
    # A line is null if all its steps were skipped.
    training = [one.loss for one in losses if one.validation is None and math.isfinite(one.loss)]
    if training:
        rows.append(("last training loss", f"{training[-1]:.4f}"))
    validation = {one.validation: one.loss for one in losses if one.validation is not None}
    rows += [(f"last validation loss, {name}", f"{loss:.4f}") for name, loss in validation.items()]
    return rows


def data_names(data: DataConfig) -> list[str]:
    """Name the training sets without the folders of the machine that trained; weights are left out."""
    groups: Sequence[str] = (
        data.data_path or data.train_data_path or data.train_weighted_split_paths
    )
    words = [word.strip(",") for group in groups for word in group.split()]
    # Weights are numbers; names of sets and ranges, as in "python: 0.3 0:0.97 PREFIX", have a colon.
    prefixes = [word for word in words if ":" not in word and not _is_number(word)]
    return list(dict.fromkeys(Path(prefix).name for prefix in prefixes))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _usage(source: RunSource) -> str:
    tokenizer = source.tokenizer
    if tokenizer is None or not (source.tokenizer_folder / "tokenizer.json").is_file():
        return ""
    usage, rate = _COMPLETION, source.config.data.fim_rate
    if rate > 0 and all(token in tokenizer.special_tokens for token in FIM_TOKENS):
        usage += _INFILLING.format(
            rate=rate,
            start=FIM_PREFIX,
            suffix=FIM_SUFFIX,
            middle=FIM_MIDDLE,
            eod=tokenizer.eod_token,
        )
    return usage if source.chat_template() is None else usage + _CONVERSATION


def _short(num_parameters: int) -> str:
    """Write 15517456384 as 15.5B."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if num_parameters >= size:
            return f"{num_parameters / size:.3g}{unit}"
    return f"{num_parameters:,}"
