"""The command line: Megatron's launches parse, mistakes are named, a YAML file lies below the flags."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron import cli
from megatron.config import Config, from_json, to_json
from megatron.errors import ConfigError, LostPeer, TrainingError

# What BigCode's launch files pass, their paths replaced. World size, then flags that differ from the common ones.
COMMON = """
--attention-head-type multiquery --seq-length 8192 --max-position-embeddings 8192
--attention-dropout 0.1 --hidden-dropout 0.1 --micro-batch-size 1 --weight-decay .1 --adam-beta2 .95
--clip-grad 1.0 --bf16 --use-flash-attn --fim-rate 0.5 --log-interval 10 --valid-num-workers 0
--lr-decay-style cosine --tokenizer-type TokenizerFromFile --tokenizer-file tokenizer.json
--save ckpt --load ckpt --train-weighted-split-paths-path train.txt
--valid-weighted-split-paths-path valid.txt --structured-logs --structured-logs-dir ckpt/logs
--tensorboard-dir ckpt/tensorboard --wandb-entity-name someone --wandb-project-name bigcode
"""
BODY_15B = """
--tensor-model-parallel-size 4 --pipeline-model-parallel-size 4 --sequence-parallel
--num-layers 40 --hidden-size 6144 --num-attention-heads 48 --init-method-std 0.01275
--global-batch-size 512
"""
LAUNCHES = {
    "15b": (
        512,
        COMMON
        + BODY_15B
        + """--lr 0.0003 --min-lr 0.00003 --train-iters 250000 --lr-decay-iters 250000
        --lr-warmup-iters 2000 --save-interval 2500 --eval-interval 2500 --eval-iters 2
        --use-distributed-optimizer""",
    ),
    "7b": (
        512,
        COMMON
        + """--tensor-model-parallel-size 2 --pipeline-model-parallel-size 1 --num-layers 42
        --hidden-size 4096 --num-attention-heads 32 --init-method-std 0.015625
        --global-batch-size 512 --lr 0.0003 --min-lr 0.00003 --train-iters 250000
        --lr-decay-iters 250000 --lr-warmup-iters 2000 --save-interval 2500 --eval-interval 2500
        --eval-iters 2 --use-distributed-optimizer""",
    ),
    "3b": (
        256,
        COMMON
        + """--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --num-layers 36
        --hidden-size 2816 --num-attention-heads 22 --init-method-std 0.01884
        --global-batch-size 256 --lr 0.0005 --min-lr 0.00005 --train-iters 500000
        --lr-decay-iters 500000 --lr-warmup-iters 2000 --save-interval 5000 --eval-interval 5000
        --eval-iters 2 --use-distributed-optimizer""",
    ),
    "1b": (
        128,
        COMMON
        + """--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --num-layers 24
        --hidden-size 2048 --num-attention-heads 16 --init-method-std 0.02209
        --global-batch-size 128 --lr 0.0004 --min-lr 0.00004 --train-iters 1000000
        --lr-decay-iters 1000000 --lr-warmup-iters 2000 --save-interval 10000
        --eval-interval 10000 --eval-iters 2""",
    ),
    "python fine-tuning": (
        512,
        COMMON
        + BODY_15B
        + """--lr 0.00005 --min-lr 0.000005 --train-iters 258500 --lr-decay-iters 8500
        --lr-warmup-iters 500 --save-interval 2500 --eval-interval 100 --eval-iters 10
        --finetune --no-load-optim --no-load-rng --override-opt_param-scheduler""",
    ),
    "starcoderplus": (
        512,
        COMMON
        + BODY_15B
        + """--lr 0.0001 --min-lr 0.00001 --train-iters 400000 --lr-decay-iters 150000
        --lr-warmup-iters 1000 --save-interval 2500 --eval-interval 2500 --eval-iters 2
        --finetune --no-load-optim --no-load-rng --override-opt_param-scheduler""",
    ),
    "santacoder": (
        96,
        """--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --recompute-activations
        --num-layers 24 --hidden-size 2048 --num-attention-heads 16
        --attention-head-type multiquery --init-method-std 0.022 --seq-length 2048
        --max-position-embeddings 2048 --attention-dropout 0.1 --hidden-dropout 0.1
        --micro-batch-size 2 --global-batch-size 192 --lr 0.0002 --train-iters 300000
        --lr-decay-iters 600000 --lr-decay-style cosine --lr-warmup-fraction 0.02
        --weight-decay .1 --adam-beta2 .95 --clip-grad 1.0 --fp16 --log-interval 10
        --save-interval 4000 --eval-interval 200 --eval-iters 10 --initial-loss-scale 65536
        --fim-rate 0.5 --tokenizer-type TokenizerFromFileWithFIM --tokenizer-file tokenizer.json
        --save ckpt --load ckpt --data-path data --tensorboard-dir ckpt/tensorboard""",
    ),
}
SMALL = """--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32
--max-position-embeddings 32 --train-iters 10 --lr 1e-3 --data-path data"""


def parse(text: str) -> Config:
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    return cli.config_from(cli.parse_known(parser, text.split()))


@pytest.mark.parametrize("name", LAUNCHES)
def test_bigcode_launch_parses_and_validates(name):
    world_size, flags = LAUNCHES[name]
    config = parse(flags)
    config.check(world_size)
    size = int(re.search(r"--hidden-size (\d+)", flags).group(1))
    assert config.model.hidden_size == size
    assert config.model.query_groups == 1
    assert config.optimizer.adam_beta2 == 0.95
    assert from_json(to_json(config)) == config


def test_aliases_set_what_they_stand_for():
    config = parse(
        SMALL + " --recompute-activations --use-flash-attn --distributed-timeout 90"
        " --override-opt-param-scheduler"
    )
    assert config.checkpoint.override_opt_param_scheduler is True
    assert config.model.recompute_granularity == "selective"
    assert config.model.attention_backend == "flash"
    assert config.parallel.distributed_timeout_minutes == 1.5


@pytest.mark.parametrize("text", ["4096", "4095,0", "(4095, 0)"])
def test_window_is_read_as_hugging_face_and_as_megatron_write_it(text, tmp_path):
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    args = cli.parse_known(parser, [*SMALL.split(), "--window-size", text])
    assert cli.config_from(args).model.window_size == 4096
    preset = tmp_path / "preset.yaml"
    preset.write_text(f"window-size: {text}\n")
    assert parse(f"--config {preset}").model.window_size == 4096


def test_rotary_positions_by_every_name_they_have():
    for flags in (
        "--position-embedding-type rope",
        "--position-embedding-type rotary",
        "--use-rotary-position-embeddings",
    ):
        config = parse(f"{SMALL} {flags} --rotary-base 1e6")
        assert config.model.position_embedding_type == "rope"
        assert config.model.rotary_base == 1e6
        config.check(1)
    absolute = parse(f"{SMALL} --position-embedding-type absolute")
    assert absolute.model.position_embedding_type == "learned_absolute"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--micro-batchsize 2", "did you mean --micro-batch-size"),
        ("--bogus", "--bogus is not an option; see --help"),
        ("--hiden-size 4 --lr abc", "did you mean --hidden-size"),
        ("--batch-size 2", "use --micro-batch-size"),
        ("--checkpoint-activations", "use --recompute-granularity full"),
        ("--lr abc", "--lr"),
        ("--lr-decay-style exponential", "invalid choice"),
        ("--position-embedding-type alibi", "invalid choice: 'alibi'"),
        ("--window-size 4095,1", "--window-size 4095,1: give the tokens"),
        ("--window-size wide", "--window-size wide: give the tokens"),
        ("--sliding-window 4096", "use --window-size"),
        ("--no-bf16", "--no-bf16 is not an option; leave out --bf16, too"),
        ("--bf16 true", "--bf16 takes no value, and 'true' follows it"),
        ("--bf16=true", "--bf16 takes no value, and is given 'true'"),
        ("--lr 1 2", "'2' belongs to no option"),
    ],
)
def test_unusable_flag_says_what_to_use(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(f"{SMALL} {flags}")


@pytest.mark.parametrize(
    ("flags", "world_size", "names"),
    [
        ("--tensor-model-parallel-size 3", 3, ["--tensor-model-parallel-size 3", "heads 4"]),
        ("--tensor-model-parallel-size 4", 2, ["4 processes", "there are 2"]),
        ("--tensor-model-parallel-size 2", 3, ["3 processes", "multiple of 2"]),
        ("--pipeline-model-parallel-size 3", 3, ["--pipeline", "--num-layers 4"]),
        ("--seq-length 64", 1, ["--seq-length 64", "--max-position-embeddings"]),
        (
            "--tensor-model-parallel-size 2 --sequence-parallel --seq-length 31",
            2,
            ["--sequence-parallel", "31"],
        ),
        (
            "--tensor-model-parallel-size 2 --context-parallel-size 2",
            2,
            ["--context-parallel-size 2 needs 4 processes", "there are 2"],
        ),
        (
            "--context-parallel-size 2 --seq-length 30",
            2,
            ["--context-parallel-size 2", "--seq-length 30", "divisible by 4;"],
        ),
        (
            "--tensor-model-parallel-size 4 --sequence-parallel --context-parallel-size 2 --seq-length 28",
            8,
            ["--context-parallel-size 2", "--sequence-parallel makes 4", "divisible by 8;"],
        ),
        (
            "--context-parallel-size 2 --use-distributed-optimizer --num-distributed-optimizer-instances 3",
            4,
            ["the 4 data x context parallel processes"],
        ),
        ("--context-parallel-size 4 --global-batch-size 3", 8, ["1 x 2 data parallel processes"]),
        (
            "--use-flash-attn --reset-attention-mask",
            1,
            ["--use-flash-attn", "--attention-dropout (0.1)", "--reset-attention-mask"],
        ),
        (
            "--use-flash-attn --window-size 8",
            1,
            ["--use-flash-attn", "--attention-dropout (0.1)", "--window-size"],
        ),
        ("--window-size 0", 1, ["--window-size is 0", "from 1"]),
        ("--rotary-base 500", 1, ["--rotary-base 500", "--position-embedding-type rope"]),
        ("--use-rotary-position-embeddings --kv-channels 5", 1, ["5 wide", "--kv-channels"]),
        ("--bf16 --fp16", 1, ["--bf16", "--fp16"]),
        ("--fp8-format hybrid", 1, ["--fp8-format hybrid", "needs --bf16"]),
        ("--fp8-format hybrid --fp16", 1, ["--fp8-format hybrid", "needs --bf16"]),
        (
            "--fp8-format hybrid --bf16 --hidden-size 72 --kv-channels 12",
            1,
            [
                "--fp8-format",
                "multiples of 16",
                "--hidden-size is 72",
                "2 x --kv-channels is 24",
            ],
        ),
        (
            "--fp8-format hybrid --bf16 --tensor-model-parallel-size 4 --ffn-hidden-size 96",
            4,
            ["--fp8-format", "multiples of 16", "--ffn-hidden-size / 4 is 24"],
        ),
        (
            "--fp8-format hybrid --bf16 --tensor-model-parallel-size 4 --kv-channels 8",
            4,
            ["--fp8-format", "multiples of 16", "heads x width / 4 is 8"],
        ),
        ("--loss-scale 8", 1, ["--loss-scale", "--fp16"]),
        ("--global-batch-size 3 --micro-batch-size 2", 1, ["3", "multiple of 2"]),
        ("--train-samples 10", 1, ["--train-iters", "--train-samples"]),
        ("--lr-decay-samples 10", 1, ["--lr-decay-samples", "--train-iters"]),
        ("--rampup-batch-size 2 2 10 --global-batch-size 4", 1, ["--train-samples"]),
        ("--save-interval 5", 1, ["--save-interval", "--save"]),
        ("--finetune", 1, ["--finetune", "--load"]),
        ("--split 9,1 --train-data-path a", 1, ["--data-path", "--train-data-path"]),
        ("--num-query-groups 3", 1, ["--num-query-groups 3", "4"]),
        ("--fim-rate 1.5", 1, ["--fim-rate is 1.5", "up to 1"]),
        ("--recompute-method block", 1, ["--recompute-granularity full"]),
        ("--num-query-groups 0", 1, ["--num-query-groups is 0", "from 1"]),
        ("--exit-interval 0", 1, ["--exit-interval is 0"]),
        ("--lr inf", 1, ["--lr is inf"]),
        ("--adam-beta1 1.0", 1, ["--adam-beta1 is 1.0", "below 1"]),
        (
            "--exp-avg-dtype bf16",
            1,
            ["--exp-avg-dtype bf16", "without --use-precision-aware-optimizer"],
        ),
        ("--fp16 --loss-scale 0", 1, ["--loss-scale is 0.0", "above 0"]),
        ("--hidden-size 0", 1, ["--hidden-size is not set"]),
        ("--structured-logs-dir a", 1, ["--structured-logs-dir", "--structured-logs"]),
        (
            "--load a --finetune --use-checkpoint-opt_param-scheduler",
            1,
            ["--finetune", "--use-checkpoint-opt_param-scheduler"],
        ),
        ("--min-lr 1", 1, ["--min-lr", "--lr"]),
        ("--lr-decay-style WSD", 1, ["--lr-wsd-decay-iters"]),
        ("--num-layers-per-virtual-pipeline-stage 1", 1, ["--pipeline-model-parallel-size"]),
        ("--decoder-last-pipeline-num-layers 0", 1, ["--decoder-last-pipeline-num-layers is 0"]),
        (
            "--num-distributed-optimizer-instances 2",
            2,
            ["--num-distributed-optimizer-instances", "--use-distributed-optimizer"],
        ),
        (
            "--use-distributed-optimizer --num-distributed-optimizer-instances 3 --global-batch-size 4",
            4,
            ["--num-distributed-optimizer-instances 3", "4 data parallel"],
        ),
        ("--pipeline-model-parallel-size 2", 2, ["at least 2 micro-batches", "has 1"]),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 "
            "--global-batch-size 3",
            2,
            ["a multiple of 2 micro-batches", "has 3"],
        ),
        (
            "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 "
            "--global-batch-size 3",
            2,
            ["a multiple of 2 micro-batches", "--num-virtual-stages-per-pipeline-rank"],
        ),
        (
            "--pipeline-model-parallel-size 3 --decoder-first-pipeline-num-layers 1 --global-batch-size 3",
            3,
            ["--decoder-first-pipeline-num-layers 1 leaves 3 of --num-layers 4", "multiple of 2"],
        ),
        (
            "--pipeline-schedule zbv",
            1,
            ["--pipeline-schedule zbv", "--pipeline-model-parallel-size"],
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-schedule dualpipev --global-batch-size 3",
            2,
            ["4 stages by --pipeline-schedule dualpipev", "at least 4 micro-batches", "has 3"],
        ),
    ],
)
def test_clash_names_both_options(flags, world_size, names):
    with pytest.raises(ConfigError) as error:
        parse(f"{SMALL} {flags}").check(world_size)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("tp_size", [1, 4])
def test_8_bit_products_take_widths_that_tensor_parallelism_leaves_multiples_of_16(tp_size):
    flags = f"--fp8-format hybrid --bf16 --tensor-model-parallel-size {tp_size}"
    parse(f"{SMALL} {flags}").check(tp_size)
    parse(f"{SMALL} --bf16 --kv-channels 9 --ffn-hidden-size 100").check(1)  # no 8 bits


@pytest.mark.parametrize(
    "flags",
    [
        "--use-rotary-position-embeddings --position-embedding-type learned_absolute",
        "--position-embedding-type learned_absolute --use-rotary-position-embeddings",
    ],
)
def test_two_flags_for_one_option_have_to_agree(flags):
    with pytest.raises(ConfigError, match="learned_absolute and, by another flag, as rope"):
        parse(f"{SMALL} {flags}")
    assert parse(f"{SMALL} --position-embedding-type rope --use-rotary-position-embeddings")
    with pytest.raises(ConfigError, match=r"given as 5\.0 and, by another flag, as 1\.5"):
        parse(f"{SMALL} --distributed-timeout-minutes 5 --distributed-timeout 90")


@pytest.mark.parametrize(
    ("schedule", "rampup", "names"),
    [
        ("interleaved", "2 1 10", ["multiple of 2 micro-batches", "has 6, 2, 3"]),
        ("interleaved", "2 2 10", None),
        ("dualpipev", "2 2 10", ["--pipeline-schedule dualpipev", "at least 4", "has 2"]),
        ("dualpipev", "4 1 10", None),
        ("1f1b", "1 1 10", ["--pipeline-schedule 1f1b", "at least 2", "has 1"]),
        ("zbv", "1 1 10", None),
    ],
)
def test_every_step_of_a_rampup_has_to_suit_the_schedule(schedule, rampup, names):
    flags = f"""{SMALL.replace("--train-iters 10", "--train-samples 90")}
    --pipeline-model-parallel-size 2 --pipeline-schedule {schedule} --global-batch-size 6
    --rampup-batch-size {rampup}"""
    if schedule == "interleaved":
        flags += " --num-virtual-stages-per-pipeline-rank 2"
    if names is None:
        parse(flags).check(2)
        return
    with pytest.raises(ConfigError) as error:
        parse(flags).check(2)
    for name in [*names, "--rampup-batch-size"]:
        assert name in str(error.value)


@pytest.mark.parametrize(("rampup", "first"), [("", 8), ("--rampup-batch-size 4 4 8", 4)])
def test_samples_have_to_be_a_batch_at_least(rampup, first):
    flags = SMALL.replace("--train-iters 10", rampup) + " --global-batch-size 8 --train-samples"
    parse(f"{flags} {first}").check(1)
    with pytest.raises(ConfigError, match=f"--train-samples {first - 1} .* first batch of {first}"):
        parse(f"{flags} {first - 1}").check(1)


def test_yaml_gives_defaults_that_flags_override(tmp_path: Path):
    path = tmp_path / "preset.yaml"
    path.write_text("model:\n  num-layers: 8\n  hidden_size: 128\nlr: 3e-4\ndata_path: [0.5, a]\n")
    config = parse(f"--config {path} --num-layers 2")
    assert config.model.num_layers == 2
    assert config.model.hidden_size == 128
    assert config.optimizer.lr == 3e-4
    assert config.data.data_path == ("0.5", "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num-layer: 8", "did you mean num_layers"),
        ("num-layers: many", "expected int"),
        ("num-layers: 2.5", "expected int"),
        ("bf16: 1", "true, false"),
        ("lr_decay_style: quick", "allowed: constant"),
        ("recompute-activations: true", "write recompute_granularity: selective"),
        ("swiglu: true", "swiglu is not an option; the MLP is GELU"),
        ("- 3", "holds no options"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_yaml_is_named(tmp_path: Path, content, message):
    path = tmp_path / "preset.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        parse(f"--config {path}")


def test_missing_yaml_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        parse(f"--config {tmp_path / 'none.yaml'}")


def test_a_mistake_is_one_line_and_exit_code_2():
    result = subprocess.run(
        [sys.executable, "tools/pretrain_gpt.py", "--num-layer", "3"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "did you mean --num-layers" in result.stderr


@pytest.mark.parametrize("argv", ["--inp x", "check --inp x"])
def test_the_beginning_of_a_flag_is_no_flag(argv):
    parser = cli.make_parser("", "")
    parser.add_argument("--input")
    parser.add_subparsers().add_parser("check").add_argument("--input")
    with pytest.raises(ConfigError, match=r"--inp is not an option; did you mean --input\?"):
        cli.parse_known(parser, argv.split())


@pytest.mark.parametrize("argv", ["--inptu x", "--inptu=x --output y", "check --inptu x"])
def test_a_misspelled_required_flag_is_named_before_the_missing_one(argv):
    parser = cli.make_parser("", "")
    parser.add_argument("--output")
    if argv.startswith("check"):
        parser.add_subparsers().add_parser("check").add_argument("--input", required=True)
    else:
        parser.add_argument("--input", required=True)
    with pytest.raises(ConfigError, match=r"--inptu is not an option; did you mean --input\?"):
        cli.parse_known(parser, argv.split())
    with pytest.raises(ConfigError, match="--input"):
        cli.parse_known(parser, argv.replace("--inptu", "--output").split())


def test_every_flag_has_a_help_text():
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    assert all(action.help for action in parser._actions)
    assert "--override-opt_param-scheduler" in parser.format_help()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "num_layers", "two"),
        ("model", "num_layers", True),
        ("model", "attention_backend", "slow"),
        ("data", "data_path", "a"),
        ("optimizer", "lr", [1.0]),
        ("model", "colour", 3),
    ],
)
def test_saved_configuration_of_another_type_is_refused(section, key, value):
    values = to_json(Config())
    values[section][key] = value
    with pytest.raises(ConfigError, match=key):
        from_json(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: " + "1" * 5000, "is not YAML"),
        ("lr: " + "[" * 1200, "is not YAML"),
        ("train-iters: 1" + "0" * 400, "expected int"),
        ("train-iters: .inf", "expected int"),
        ("lr: [1, 2]", r"lr is \[1, 2\]; expected float"),
        ("save: {a: 1}", "save is .*; expected str"),
        ('save: "a\\0b"', "NUL character"),
        ('save: "a\\uD800b"', "not UTF-8|not YAML"),
        ("lr-decay-style: [linear]", r"lr-decay-style is \['linear'\]; allowed"),
        ("window-size: [[1]]", "expected str"),
        # each of them ten of the one before: written out, longer than all memory
        ("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)).replace("*a0", "x")
         + "\nsave: *a19", "is not an option"),
        ("save: &a0 [x]\nlr: &a1 [*a0, *a0]\nload: [*a1, *a1]", "expected str"),
    ],
)  # fmt: skip
def test_a_preset_that_is_meant_to_harm_is_an_error(text, message, tmp_path):
    (tmp_path / "preset.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(f"--config {tmp_path / 'preset.yaml'}")


def test_a_window_of_two_numbers_may_be_a_list_in_a_preset(tmp_path):
    (tmp_path / "preset.yaml").write_text("window-size: [4095, 0]\n")
    assert parse(f"--config {tmp_path / 'preset.yaml'}").model.window_size == 4096


@pytest.mark.parametrize("word", ["a\0b", "a\udcffb"])
def test_what_no_file_can_be_called_is_refused(word):
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    with pytest.raises(ConfigError, match="not UTF-8 or has a NUL"):
        cli.parse_known(parser, ["--save", word])


@pytest.mark.parametrize("number", ["1" + "0" * 400, "4000000000"])
def test_sizes_beyond_all_machines_are_refused(number):
    with pytest.raises(ConfigError, match=r"--hidden-size is .*up to 1e.06"):
        parse(f"{SMALL} --hidden-size {number}").check(1)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigError(""), 2),
        (TrainingError(""), 1),
        (LostPeer(""), 76),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),  # a signal
        (SystemExit(), 0),  # --help
    ],
)
def test_every_end_has_its_exit_code(raised, code):
    def main():
        raise raised

    assert cli.run_main(main) == code


def test_an_error_is_one_line_whatever_is_in_it():
    assert cli.one_line("a\n\n  b\r\nc\x00d\u2028e\x1b[0m") == "a b c\\x00d e\\x1b[0m"
