#!/usr/bin/env bash
# StarCoder's Python stage (arXiv 2305.06161): StarCoderBase, trained on over Python, becomes StarCoder.
#
#   bash examples/finetune_python.sh
#       MODEL=tiny: the demo's model on the Python part of its corpus, in about two minutes on two cores, and what it
#       forgot by language: of C++ enough to end with exit code 3. Needs what examples/pretrain_starcoder.sh made.
#   MODEL=15b LOAD=bigcode/starcoderbase DATA_PATH=data/python_text_document \
#   VALID_PATHS="data/python_valid_text_document data/ruby_valid_text_document" bash examples/finetune_python.sh
#       LOAD is a run's folder of checkpoints, one of them, or a Hugging Face folder on disk, which is converted first.
#   MODEL=15b bash examples/finetune_python.sh --dry-run
#       Check it on any machine: starts nothing and needs no data.
#
# The run has weights from LOAD, and steps, schedule and optimizer of its own. What it saves it continues: the same
# command goes on after an interruption, and never begins at LOAD again once it has saved something. At its end the
# losses of each validation set are compared with those at its start: exit code 3, with all saved, if one rose by more
# than 3 % (docs/finetuning.md). Flags after the script's name go to tools/pretrain_gpt.py and win. Under Slurm:
# examples/pretrain_starcoder.slurm.
#
# Needs: what tools/make_env.sh needs (Python >= 3.10, a C++ compiler, a package index the first time).
# Reads, all optional but for what it says it misses:
#   MODEL             tiny, 1b, 3b, 7b, 15b                        (default: tiny)
#   LOAD              weights to start from                        (tiny: runs/starcoder-tiny/checkpoints)
#   DATA_PATH         prefix of .bin/.idx, or "weight prefix …"; or give a data flag  (tiny: the demo's Python part)
#   VALID_PATHS       prefixes of held-out files, a set each; other languages show what is forgotten
#   TOKENIZER_FILE    tokenizer.json that the data was made with   (default: the one that lies with LOAD)
#   RUN_DIR, SAVE     everything of the run, its checkpoints       (default: runs/python-MODEL, RUN_DIR/checkpoints)
#   MAX_LOSS_RISE     in %, of any validation set                  (default: 3)
#   ALLOW_FORGETTING  1: say what was forgotten and end well
#   GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, MAX_RESTARTS, PREFLIGHT, TRAIN_PYTHON
#                     as in examples/pretrain_starcoder.sh         (docs/cluster.md)
set -euo pipefail

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "$script"; }

script=${BASH_SOURCE[0]}
root=$(cd "$(dirname "$script")/.." && pwd)
model=${MODEL:-tiny}
run_dir=${RUN_DIR:-$root/runs/python-$model}
save=${SAVE:-$run_dir/checkpoints}
data_path=${DATA_PATH:-}
load=${LOAD:-}
python=${TRAIN_PYTHON:-$root/.venv/bin/python}
# shellcheck source=examples/launcher.sh
source "$root"/examples/launcher.sh
# shellcheck source=examples/recipes.sh
source "$root"/examples/recipes.sh
# shellcheck source=examples/finetune.sh
source "$root"/examples/finetune.sh

stage() { # the published numbers; what they do not say is as in pretraining, FIM too
    recipe+=(
        --finetune               # weights of LOAD, nothing else of it
        --train-iters 8500       # 8,500 steps of 4 M tokens: 35 B, two epochs of Python
        --lr-decay-iters 8500
        --global-batch-size 512  # 4 M tokens, whatever the pretraining of this size had
        --lr 5e-5
        --min-lr 5e-6
        --lr-warmup-iters 1000   # as the paper says; BigCode's launch file has 500
        --save-interval 500
        --eval-interval 500
    )
}
stage_tiny() { # as there, a sixth of the learning rate of pretraining
    recipe+=(
        --finetune
        --train-iters 160
        --lr 5e-4 --min-lr 5e-5
        --save-interval 40 --eval-interval 80
    )
}

give_tiny_data() { # the demo's Python part, and a validation set a language
    local demo=$root/runs/starcoder-tiny prefix
    [[ -f $demo/data/python_train_text_document.idx ]] ||
        die "$demo/data has no Python part; bash examples/pretrain_starcoder.sh makes it, or set DATA_PATH"
    for prefix in "$demo"/data/*_valid_text_document.idx; do
        add_valid_groups "${prefix%.idx}"
    done
    recipe+=(--train-data-path "$demo/data/python_train_text_document")
}

finish() { :; }

finetune "$@"
