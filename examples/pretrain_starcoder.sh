#!/usr/bin/env bash
# Pretrain StarCoder (arXiv 2305.06161): from source files to a Hugging Face model.
#
#   bash examples/pretrain_starcoder.sh
#       MODEL=tiny, the whole way on this machine in a few minutes: environment, corpus, tokenizer, token
#       files, training, export, samples, loss curve. After an interruption, the same command continues.
#   MODEL=15b DATA_PATH=data/code_text_document TOKENIZER_FILE=tokenizer.json bash examples/pretrain_starcoder.sh
#       A published recipe: 1b, 3b, 7b, 15b or santacoder. Run it on every node; under Slurm it starts them.
#   MODEL=15b bash examples/pretrain_starcoder.sh --dry-run
#       Check a recipe on any machine: starts nothing and needs no data.
#   MODEL=15b bash examples/pretrain_starcoder.sh --plan --world-size 64 --hardware h100-80gb --rank-layouts
#       Plan it instead: memory, time and cost, or the best layouts of so many GPUs. Flags go to tools/plan.py.
#
# Flags after the script's name go to tools/pretrain_gpt.py behind the recipe's own: the last one wins. After
# make env, .venv/bin/python tools/pretrain_gpt.py --help lists them.
#
# Needs: what tools/make_env.sh needs (Python >= 3.10, a C++ compiler, a package index the first time).
# Reads, all optional but for what a published recipe says it misses:
#   MODEL           tiny, 1b, 3b, 7b, 15b, santacoder              (default: tiny)
#   RUN_DIR         everything of the run                          (default: runs/starcoder-MODEL)
#   SAVE            its checkpoints and metrics                    (default: RUN_DIR/checkpoints)
#   DATA_PATH       prefix of .bin/.idx, or "weight prefix weight prefix"; or give a data flag
#   TOKENIZER_FILE  tokenizer.json
#   LANGUAGES       tiny: what to collect on this machine          (default: "python cpp")
#   GPUS_PER_NODE   processes of a node                            (default: its GPUs; tiny on a CPU: 2)
#   TRAIN_PYTHON    a Python that has everything, as in a container (default: .venv's, which is made if missing)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT                    (default: Slurm's, or one node)
#   MAX_RESTARTS    crashes that a launch survives                 (default: 3; tiny: 0)
#   PREFLIGHT       1: check nodes, network, disks and data first  (docs/cluster.md)
set -euo pipefail

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=${MODEL:-tiny}
run_dir=${RUN_DIR:-$root/runs/starcoder-$model}
save=${SAVE:-$run_dir/checkpoints}
data_path=${DATA_PATH:-}
tokenizer_file=${TOKENIZER_FILE:-}
python=${TRAIN_PYTHON:-$root/.venv/bin/python}
# shellcheck source=examples/launcher.sh
source "$root"/examples/launcher.sh
# shellcheck source=examples/recipes.sh
source "$root"/examples/recipes.sh

# ------------------------------------------------------------------------------------------------- tiny

prepare_tiny_data() { # each stage is skipped where its finished output lies
    local languages=() language part
    read -r -a languages <<<"${LANGUAGES:-python cpp}"
    local corpus=$run_dir/corpus tokens=$run_dir/data tokenizer_file=$run_dir/tokenizer.json
    mkdir -p "$tokens"
    if [[ ! -d $corpus ]]; then
        say "collecting source code on this machine"
        "$python" "$root"/tools/collect_source.py --output "$corpus" --languages "${languages[@]}" \
            --min-mb 1 --max-mb $((24 / ${#languages[@]}))
    fi
    if [[ ! -f $tokenizer_file ]]; then
        say "training a tokenizer"
        "$python" "$root"/tools/train_tokenizer.py --input "$corpus"/*_train.jsonl \
            --vocab-size "$recipe_vocabulary" --max-bytes 8000000 --output "$tokenizer_file"
    fi
    local train_paths=() valid_groups=()
    for language in "${languages[@]}"; do
        for part in train valid; do
            local prefix=$tokens/${language}_$part
            if [[ ! -f ${prefix}_text_document.bin || ! -f ${prefix}_text_document.idx ]]; then
                say "tokenizing $language, $part"
                "$python" "$root"/tools/preprocess_data.py --input "$corpus/${language}_$part.jsonl" \
                    --output-prefix "$prefix" --tokenizer-type TokenizerFromFile \
                    --tokenizer-file "$tokenizer_file" --append-eod --shuffle --workers "$num_cores" \
                    --provenance-keys path language
            fi
        done
        train_paths+=(1 "$tokens/${language}_train_text_document") # equal weights
        valid_groups+=("$language: 1 0:1 $tokens/${language}_valid_text_document")
    done
    recipe+=(
        --train-data-path "${train_paths[@]}" --valid-weighted-split-paths "${valid_groups[@]}"
        --tokenizer-type TokenizerFromFile --tokenizer-file "$tokenizer_file"
    )
}

how_to_train_longer() { # on what this run was trained on, in a run of its own: the schedule is another
    local data=""
    [[ -z $data_path ]] || data="DATA_PATH='$data_path' "
    [[ -z $tokenizer_file ]] || data+="TOKENIZER_FILE='$tokenizer_file' "
    if [[ $has_data == yes && -z $data_path ]]; then
        echo "this command with RUN_DIR=runs/longer before it and --train-iters 5000 behind it"
    else
        echo "${data}RUN_DIR=runs/longer bash examples/pretrain_starcoder.sh --train-iters 5000"
    fi
}

size_of() { du -sh "$1" | cut -f1; }

finish_tiny() {
    local folder=$run_dir/huggingface
    if [[ ! $folder/config.json -nt $save/latest_checkpointed_iteration.txt ]]; then
        say "exporting to Hugging Face"
        "$python" "$root"/tools/convert_to_hf.py --load "$save" --save "$folder" --verify --overwrite
    fi
    say "what it writes after so little training"
    "$python" "$root"/tools/generate.py --load "$folder" --input - --echo \
        --max-new-tokens 48 --temperature 0.4 --top-p 0.95 <<'END'
{"id": "completion of main", "prompt": "import os\nimport sys\n\n\ndef main(args):\n"}
{"id": "infilling of push", "prefix": "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        ", "suffix": "\n\n    def pop(self):\n        return self.items.pop()\n"}
END
    say "losses on held-out files"
    "$python" "$root"/tools/plot_loss.py --metrics "$save/metrics.jsonl" --output "$run_dir/loss.png"
    say "made in $run_dir, in $((SECONDS / 60)) min $((SECONDS % 60)) s"
    [[ ! -d $run_dir/corpus ]] || cat <<END
corpus/          source of this machine, one file a line   $(size_of "$run_dir/corpus")
tokenizer.json   byte-level BPE with StarCoder's sentinels $(size_of "$run_dir/tokenizer.json")
data/            token files (.bin, .idx)                  $(size_of "$run_dir/data")
END
    cat <<END
checkpoints/     to resume from; metrics, TensorBoard      $(size_of "$save")
huggingface/     from_pretrained() loads it                $(size_of "$folder")
loss.png         the loss curve                            $(size_of "$run_dir/loss.png")

== what next
look at it       .venv/bin/tensorboard --logdir '$save/tensorboard'
train longer     $(how_to_train_longer)
write with it    .venv/bin/python tools/serve.py --load '$save' # a page at http://127.0.0.1:8000/
whose code       docs/attribution.md: which training file a line came from
your own code    README.md, "Your own data"
a real size      MODEL=1b bash examples/pretrain_starcoder.sh --dry-run
END
}

# ------------------------------------------------------------------------------------------------- main

if has_flag --help "$@" || has_flag -h "$@"; then
    usage
    exit
fi
declare -F "recipe_$model" >/dev/null ||
    die "MODEL is '$model'; allowed: tiny, 1b, 3b, 7b, 15b, santacoder"
begin "${BASH_SOURCE[0]}" "$@"
[[ -z ${data_path} ]] || { read -r -a paths <<<"$data_path" && recipe+=(--data-path "${paths[@]}"); }
[[ -z $tokenizer_file ]] ||
    recipe+=(--tokenizer-type TokenizerFromFile --tokenizer-file "$tokenizer_file")

if has_flag --dry-run "$@"; then
    [[ -n ${GPUS_PER_NODE:-} ]] || world_size=$recipe_gpus
    if [[ $model == tiny && $has_data == no && -n $(find "$save" -name 'iter_*' -print -quit 2>/dev/null) ]]; then
        prepare_tiny_data # which is there: the run that goes on is checked with it
    elif [[ $has_data == no ]]; then
        dry_run_without_data "$@"
        exit
    fi
fi
recipe+=(--save "$save" --load "$save")
if has_flag --dry-run "$@"; then
    dry_run "$@"
    exit
elif has_flag --plan "$@"; then
    plan "$@"
    exit
fi

if [[ $model == tiny && $has_data == no ]]; then
    ((num_nodes == 1)) || die "MODEL=tiny builds its data on one node and NNODES is $num_nodes; set DATA_PATH"
    prepare_tiny_data
elif [[ $has_data == no ]]; then
    die "DATA_PATH is not set; give the prefix of .bin and .idx that tools/preprocess_data.py wrote"
elif [[ -z $tokenizer_file ]] && ! has_flag '--tokenizer-*' "$@"; then
    die "TOKENIZER_FILE is not set; give the tokenizer.json that the data was made with"
fi
make_ready training "$@"
if [[ $model != tiny ]]; then
    exec "${launcher[@]}" "$root"/tools/pretrain_gpt.py "${recipe[@]}" "$@"
fi
train "$@"
finish_tiny
