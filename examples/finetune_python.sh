#!/usr/bin/env bash
# StarCoder's Python stage (arXiv 2305.06161 §5.5): StarCoderBase, trained on over Python, becomes StarCoder.
#
#   bash examples/finetune_python.sh
#       MODEL=tiny: the demo's model on the Python part of its corpus, in about two minutes on two cores, and the
#       losses by language before and after. Needs what examples/pretrain_starcoder.sh made.
#   MODEL=15b LOAD=bigcode/starcoderbase DATA_PATH=data/python_text_document bash examples/finetune_python.sh
#       LOAD is a run's folder of checkpoints, or a Hugging Face folder on disk, which is converted first.
#   MODEL=15b bash examples/finetune_python.sh --dry-run
#       Check it on any machine: starts nothing and needs no data.
#
# The run has weights from LOAD, and steps, schedule and optimizer of its own. What it saves it continues: the same
# command goes on after an interruption, and never begins at LOAD again once it has saved something.
# Flags after the script's name go to tools/pretrain_gpt.py and win. Under Slurm: examples/pretrain_starcoder.slurm.
#
# Needs: what tools/make_env.sh needs (Python >= 3.10, a C++ compiler, a package index the first time).
# Reads, all optional but for what it says it misses:
#   MODEL           tiny, 1b, 3b, 7b, 15b                          (default: tiny)
#   LOAD            weights to start from                          (tiny: runs/starcoder-tiny/checkpoints)
#   DATA_PATH       prefix of .bin/.idx, or "weight prefix …"; or give a data flag  (tiny: the demo's Python part)
#   TOKENIZER_FILE  tokenizer.json that the data was made with     (default: the one that lies with LOAD)
#   RUN_DIR, SAVE   everything of the run, its checkpoints         (default: runs/python-MODEL, RUN_DIR/checkpoints)
#   GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, MAX_RESTARTS, PREFLIGHT, TRAIN_PYTHON
#                   as in examples/pretrain_starcoder.sh           (docs/cluster.md)
set -euo pipefail

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=${MODEL:-tiny}
run_dir=${RUN_DIR:-$root/runs/python-$model}
save=${SAVE:-$run_dir/checkpoints}
demo=$root/runs/starcoder-tiny
data_path=${DATA_PATH:-}
load=${LOAD:-}
python=${TRAIN_PYTHON:-$root/.venv/bin/python}
# shellcheck source=examples/launcher.sh
source "$root"/examples/launcher.sh
# shellcheck source=examples/recipes.sh
source "$root"/examples/recipes.sh

python_stage() { # §5.5 what is not said is as in pretraining, FIM too
    recipe+=(
        --finetune               # weights of LOAD, nothing else of it
        --train-iters 8500       # §5.5 8,500 steps of 4 M tokens: 35 B, two epochs of Python
        --lr-decay-iters 8500
        --global-batch-size 512  # 4 M tokens, whatever the pretraining of this size had
        --lr 5e-5                # §5.5
        --min-lr 5e-6            # §5.5
        --lr-warmup-iters 1000   # §5.5; BigCode's launch file has 500
        --save-interval 500
        --eval-interval 500
    )
}
python_stage_tiny() { # as there, a sixth of the learning rate of pretraining
    recipe+=(
        --finetune
        --train-iters 160
        --lr 5e-4 --min-lr 5e-5
        --save-interval 40 --eval-interval 80
    )
}

is_hugging_face() { [[ -f $1/config.json && ! -f $1/latest_checkpointed_iteration.txt ]]; }

find_tokenizer() {
    local file
    [[ -z $tokenizer_file ]] || return 0
    for file in "$load"/tokenizer.json "$load"/tokenizer/tokenizer.json; do
        [[ ! -f $file ]] || tokenizer_file=$file
    done
}

convert_load() { # once, on the first node: a Hugging Face folder becomes a checkpoint that --finetune can read
    local converted=$run_dir/base
    if [[ ! -f $converted/latest_checkpointed_iteration.txt && ${node_rank:-0} == 0 ]]; then
        say "converting $load"
        mkdir -p "$run_dir"
        "$python" "$root"/tools/convert_from_hf.py --load "$load" --save "$converted"
    fi
    load=$converted
}
wait_for_load() { # other nodes: until the first one has converted
    local seconds=0
    until [[ -f $load/latest_checkpointed_iteration.txt ]]; do
        ((seconds < 3600)) || die "$load holds no checkpoint after an hour; does every node see $run_dir?"
        sleep 5
        seconds=$((seconds + 5))
    done
}

if has_flag --help "$@" || has_flag -h "$@"; then
    usage
    exit
fi
[[ $model =~ ^(tiny|1b|3b|7b|15b)$ ]] || die "MODEL is '$model'; allowed: tiny, 1b, 3b, 7b, 15b"
check_node_variables
[[ $model != tiny ]] || max_restarts=${MAX_RESTARTS:-0}
if is_batch_script && ! has_flag --dry-run "$@"; then
    run_on_nodes "${BASH_SOURCE[0]}" "$@"
fi
keep_node_log
prepare_python
catch_signals
count_processors
if [[ $model == tiny ]] && ((num_processes == 0)); then
    num_processes=$((num_cores > 1 ? 2 : 1))
fi
recipe=() recipe_gpus=0 recipe_vocabulary=0
"recipe_$model"
world_size=$((num_nodes * num_processes))

tokenizer_file=${TOKENIZER_FILE:-}
if [[ $model == tiny ]]; then
    load=${load:-$demo/checkpoints}
    python_stage_tiny
else
    python_stage
fi
has_data=no
if [[ -n $data_path ]] || has_flag '--*data-path' "$@" || has_flag '--*split-paths*' "$@"; then
    has_data=yes
fi
if has_flag --dry-run "$@" && [[ $has_data == no && $model != tiny ]]; then
    # What a laptop can check: model, layout and batch, as a run that begins with random weights.
    for index in "${!recipe[@]}"; do
        [[ ${recipe[index]} != --finetune ]] || unset "recipe[index]"
    done
    [[ -n ${GPUS_PER_NODE:-} ]] || world_size=$recipe_gpus
    dry_run_without_data "$@"
    exit
fi
[[ -n $load ]] || die "LOAD is not set; give the checkpoints of a run, or a Hugging Face folder"
if [[ ! -d $load ]]; then
    [[ $model != tiny || -n ${LOAD:-} ]] ||
        die "$load does not exist; bash examples/pretrain_starcoder.sh makes it, or set LOAD"
    die "LOAD is '$load', which is no folder; give the checkpoints of a run, or a Hugging Face folder on disk"
fi
find_tokenizer
[[ -z $tokenizer_file ]] ||
    recipe+=(--tokenizer-type TokenizerFromFile --tokenizer-file "$tokenizer_file")
if [[ -n $data_path ]]; then
    read -r -a paths <<<"$data_path" && recipe+=(--data-path "${paths[@]}")
elif [[ $has_data == no && $model == tiny ]]; then
    [[ -f $demo/data/python_train_text_document.idx ]] ||
        die "$demo/data has no Python part; bash examples/pretrain_starcoder.sh makes it, or set DATA_PATH"
    groups=()
    for prefix in "$demo"/data/*_valid_text_document.idx; do
        prefix=${prefix%.idx}
        name=$(basename "${prefix%_valid_text_document}")
        groups+=("$name: 1 0:1 $prefix")
    done
    recipe+=(
        --train-data-path "$demo/data/python_train_text_document" --valid-weighted-split-paths "${groups[@]}"
    )
elif [[ $has_data == no ]]; then
    die "DATA_PATH is not set; give the prefix of .bin and .idx that tools/preprocess_data.py wrote"
fi
! is_hugging_face "$load" || convert_load
wait_for_load
recipe+=(--load "$load" --save "$save")
if has_flag --dry-run "$@"; then
    [[ -n ${GPUS_PER_NODE:-} || $model == tiny ]] || world_size=$recipe_gpus
    dry_run "$@"
    exit
fi
((num_processes > 0)) || die "no GPU on this machine; MODEL=$model needs some, or GPUS_PER_NODE=N for CPU processes"

say "fine-tuning MODEL=$model on Python: $num_nodes node(s) of $num_processes process(es)"
messages=$(dry_run "$@" 2>&1) || { code=$? && printf '%s\n' "$messages" >&2 && exit "$code"; }
prepare_launch
check_cluster "${recipe[@]}" "$@"
make_launcher
code=0
run "${launcher[@]}" "$root"/tools/pretrain_gpt.py "${recipe[@]}" "$@" || code=$?
say_how_to_go_on "$code"
((code == 0)) || exit "$code"
if [[ ${node_rank:-0} == 0 ]]; then
    say "losses on held-out files, before and after"
    "$python" "$root"/tools/plot_loss.py --metrics "$save/metrics.jsonl" --output "$run_dir/loss.png"
    say "made in $run_dir; to Hugging Face: tools/convert_to_hf.py --load '$save' --save DIR"
fi
