"""Flags of Megatron's launches that are no options here: each is named, with what to do."""

import pytest

from megatron import cli
from megatron.errors import ConfigError

# What launches of Megatron-LM's GPT recipes pass besides, NVIDIA's and BigCode's.
OTHERS = """
--use-mcore-models --transformer-impl --ckpt-format --dist-ckpt-strictness --async-strategy --auto-detect-ckpt-format
--data-cache-path --no-mmap-bin-files --no-create-attention-mask-in-dataloader --mock-data --data-impl --mmap-warmup
--overlap-grad-reduce --overlap-param-gather --no-async-tensor-model-parallel-allreduce --tp-comm-overlap
--no-masked-softmax-fusion --no-bias-gelu-fusion --no-bias-dropout-fusion --no-persist-layer-norm --no-rope-fusion
--cross-entropy-loss-fusion --attention-softmax-in-fp32 --apply-query-key-layer-scaling --use-cpu-initialization
--log-params-norm --log-num-zeros-in-grad --log-throughput --log-progress --timing-log-level --timing-log-option
--log-timers-to-tensorboard --log-memory-to-tensorboard --log-validation-ppl-to-tensorboard --log-batch-size-to-tensorboard
--tensorboard-queue-size --tensorboard-log-interval --wandb-project --wandb-entity --wandb-exp-name --wandb-save-dir
--swiglu --squared-relu --normalization --norm-epsilon --apply-layernorm-1p --qk-layernorm --num-experts --moe-router-topk
--expert-model-parallel-size --multi-latent-attention --rotary-percent --rotary-theta --use-rope-scaling --manual-gc
--no-position-embedding --checkpoint-activations --fp8-hybrid --fp8-margin --fp8-amax-history-len --fp8-recipe
--empty-unused-memory-level --profile --profile-step-start --use-checkpoint-args --no-save-rng --ckpt-step --rerun-mode
--pretrained-checkpoint --calculate-per-token-loss --use-torch-fsdp2 --optimizer-cpu-offload --cuda-graph-impl --local-rank
--DDP-impl --fim-data --fim-fragment-rate --fim-prefix-token --tiktoken-pattern --decoupled-lr --step-batch-size-schedule --exit-signal
"""


def parse(flags: str) -> None:
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    cli.parse_known(parser, flags.split())


@pytest.mark.parametrize("flag", OTHERS.split())
def test_a_flag_of_megatron_has_an_answer_of_its_own(flag):
    with pytest.raises(ConfigError, match=f"{flag} is not an option") as error:
        parse(flag)
    assert "did you mean" not in str(error.value) and "--help" not in str(error.value)


def test_all_flags_that_are_none_are_named_at_once():
    flags = "--use-mcore-models --data-impl mmap --transformer-impl local --foo -1 --micro-batchsize=2 --foo 2"
    with pytest.raises(ConfigError) as error:
        parse(flags)
    text = str(error.value)
    assert text.startswith(
        "5 flags are not options: --use-mcore-models, --transformer-impl (leave out: there is one"
    )
    for part in ("--data-impl (leave out", "--foo (see --help)", "mean --micro-batch-size?)"):
        assert part in text


def test_an_answer_whose_flags_a_tool_has_not_is_not_given():
    parser = cli.make_parser("", "")
    parser.add_argument("--max-batch-size")
    with pytest.raises(ConfigError, match="did you mean --max-batch-size"):
        cli.parse_known(parser, ["--batch-size", "4"])
