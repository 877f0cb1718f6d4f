#!/usr/bin/env bash
# Tune a model on conversations, with loss on the answers only: it learns to answer instead of to continue.
#
#   bash examples/finetune_instruct.sh
#       MODEL=tiny: the demo's model on the conversations of examples/conversations.jsonl, in about two minutes on two
#       cores, and its answer to a question. Needs what examples/pretrain_starcoder.sh made.
#   MODEL=15b LOAD=bigcode/starcoderbase CHATS=chats.jsonl bash examples/finetune_instruct.sh
#       Lines of CHATS: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.
#       LOAD is a run's folder of checkpoints, one of them, or a Hugging Face folder on disk, which is converted first.
#   MODEL=15b bash examples/finetune_instruct.sh --dry-run
#       Check it on any machine: starts nothing and needs no data.
#
# The conversations are written as token files once, 5 % of them held out, and the run takes EPOCHS of the rest. What
# it saves it continues: the same command goes on after an interruption. With VALID_PATHS it ends with exit code 3,
# all saved, if the loss of one of these sets rose by more than 3 % (docs/finetuning.md). Flags after the script's name go
# to tools/pretrain_gpt.py and win. Under Slurm: examples/pretrain_starcoder.slurm.
#
# Needs: what tools/make_env.sh needs (Python >= 3.10, a C++ compiler, a package index the first time).
# Reads, all optional but for what it says it misses:
#   MODEL             tiny, 1b, 3b, 7b, 15b                        (default: tiny)
#   LOAD              weights to start from                        (tiny: runs/starcoder-tiny/checkpoints)
#   CHATS             conversations, .jsonl or .parquet            (tiny: examples/conversations.jsonl)
#   CHAT_TEMPLATE     starchat, plain or a file                    (default: starchat if the tokenizer has its sentinels)
#   EPOCHS            times each conversation is read              (default: 3; tiny: 24)
#   VALID_PATHS       prefixes of held-out files, a set each; code shows what is forgotten
#   TOKENIZER_FILE    tokenizer.json of the model                  (default: the one that lies with LOAD)
#   RUN_DIR, SAVE     everything of the run, its checkpoints       (default: runs/instruct-MODEL, RUN_DIR/checkpoints)
#   MAX_LOSS_RISE     in %, of any validation set                  (default: 3)
#   ALLOW_FORGETTING  1: say what was forgotten and end well
#   GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, MAX_RESTARTS, PREFLIGHT, TRAIN_PYTHON
#                     as in examples/pretrain_starcoder.sh         (docs/cluster.md)
set -euo pipefail

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "$script"; }

script=${BASH_SOURCE[0]}
root=$(cd "$(dirname "$script")/.." && pwd)
model=${MODEL:-tiny}
run_dir=${RUN_DIR:-$root/runs/instruct-$model}
save=${SAVE:-$run_dir/checkpoints}
chats=${CHATS:-}
[[ $model != tiny ]] || chats=${chats:-$root/examples/conversations.jsonl}
data_path=${chats:+$run_dir/data/chats_messages_document}
load=${LOAD:-}
epochs=${EPOCHS:-3}
[[ $model != tiny ]] || epochs=${EPOCHS:-24}
python=${TRAIN_PYTHON:-$root/.venv/bin/python}
# shellcheck source=examples/launcher.sh
source "$root"/examples/launcher.sh
# shellcheck source=examples/recipes.sh
source "$root"/examples/recipes.sh
# shellcheck source=examples/finetune.sh
source "$root"/examples/finetune.sh

stage() { # no published numbers: a batch of 64 samples full of conversations, a fifteenth of the learning rate
    recipe_gpus=$((recipe_gpus == 512 ? 16 : 8)) # so small a batch is for few
    recipe+=(
        --finetune                 # weights of LOAD, nothing else of it
        --reset-attention-mask --reset-position-ids # no conversation sees another
        --fim-rate 0
        --attention-dropout 0.0    # with it, masks of documents are slow
        --global-batch-size 64
        --lr 2e-5 --min-lr 2e-6
        --lr-warmup-fraction 0.03 --lr-warmup-iters 0
        --save-interval 100 --eval-interval 100
    )
}
stage_tiny() {
    recipe+=(
        --finetune
        --reset-attention-mask --reset-position-ids
        --fim-rate 0
        --lr 2e-3 --min-lr 2e-4
        --save-interval 40 --eval-interval 40 --eval-iters 1
    )
}

prepare_chats() { # once, on the first node: conversations become token files
    [[ -n $chats ]] || die "CHATS is not set; name a file of conversations"
    [[ -f $chats ]] || die "CHATS is '$chats', which is no file; name one of conversations"
    [[ -n $tokenizer_file ]] || die "TOKENIZER_FILE is not set, and no tokenizer.json lies with $load"
    if [[ -f $data_path.idx ]]; then
        echo "conversations are those that $data_path holds already; without its files, $chats is written anew"
    elif [[ ${node_rank:-0} == 0 ]]; then
        say "encoding $chats"
        "$python" "$root"/tools/preprocess_data.py --input "$chats" --messages-key messages \
            --output-prefix "${data_path%_messages_document}" --tokenizer-file "$tokenizer_file" --shuffle \
            --workers "$num_cores" ${CHAT_TEMPLATE:+--chat-template "$CHAT_TEMPLATE"}
    fi
    wait_for_file "$data_path".idx
}

choose_data() { # choose_data FLAGS...: nineteen of twenty conversations, and what is validated
    local paths=()
    prepare_chats
    recipe+=(--train-weighted-split-paths "chats: 1 0:0.95 $data_path")
    valid_groups=("answers: 1 0.95:1 $data_path")
    [[ -z ${VALID_PATHS:-} ]] || { read -r -a paths <<<"$VALID_PATHS" && add_valid_groups "${paths[@]}"; }
    recipe+=(--valid-weighted-split-paths "${valid_groups[@]}")
}

choose_length() { # choose_length FLAGS...: the steps that EPOCHS are, unless a flag says how many
    local steps
    if has_flag --train-iters "$@" || has_flag --train-samples "$@"; then
        return
    fi
    steps=$(
        "$python" - "${recipe[@]}" --train-iters 1000000 "$@" <<'END'
import sys
from megatron import cli
from megatron.training.inputs import open_inputs

def main():
    parser = cli.make_parser("", "")
    parser.add_argument("--dry-run", action="store_true")
    cli.add_config(parser)
    config = cli.config_from(cli.parse_known(parser, sys.argv[1:]))
    inputs = open_inputs(config, config.parallel.model_parallel_size)
    print(inputs.datasets.train.samples_per_epoch, config.global_batch_size(1))

cli.run_tool(main)
END
    ) || exit "$?"
    local samples=${steps% *} batch=${steps#* }
    steps=$(((samples * epochs + batch - 1) / batch))
    recipe+=(--train-iters "$steps" --lr-decay-iters "$steps")
    echo "$epochs epochs of $samples samples are $steps steps of $batch"
}

finish() {
    say "what it answers"
    "$python" "$root"/tools/generate.py --load "$save" --max-new-tokens 64 \
        --chat 'Write a Python function to add two numbers.'
}

should_judge() { [[ -n ${VALID_PATHS:-} ]]; }
forgetting_flags=(--waive answers) # a few that were held out: to answer worse is not to forget

[[ $epochs =~ ^[1-9][0-9]{0,3}$ ]] || die "EPOCHS is '$epochs'; give a whole number from 1 to 9999"
finetune "$@"
