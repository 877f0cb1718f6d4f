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
set -euo pipefail

usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=${MODEL:-tiny}
run_dir=${RUN_DIR:-$root/runs/starcoder-$model}
save=${SAVE:-$run_dir/checkpoints}
data_path=${DATA_PATH:-}
tokenizer_file=${TOKENIZER_FILE:-}
num_nodes=${NNODES:-${SLURM_NNODES:-1}}
node_rank=${NODE_RANK:-${SLURM_NODEID:-}}
python=${TRAIN_PYTHON:-$root/.venv/bin/python}

die() {
    printf 'pretrain_starcoder.sh: error: %s\n' "$1" >&2
    exit 2
}
has_flag() { # has_flag PATTERN ARGUMENTS...
    local pattern=$1 argument
    shift
    for argument in "$@"; do
        # shellcheck disable=SC2053  # the right side is a pattern
        [[ ${argument%%=*} != $pattern ]] || return 0
    done
    return 1
}

check_number() { # check_number NAME VALUE LEAST
    [[ -z $2 ]] && return
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && (($2 >= $3)) && return
    die "$1 is '$2'; give a whole number from $3 on, or leave it out"
}
check_variables() {
    declare -F "recipe_$model" >/dev/null ||
        die "MODEL is '$model'; allowed: tiny, 1b, 3b, 7b, 15b, santacoder"
    check_number GPUS_PER_NODE "${GPUS_PER_NODE:-}" 1
    check_number NNODES "${NNODES:-}" 1
    check_number NODE_RANK "${NODE_RANK:-}" 0
    check_number MASTER_PORT "${MASTER_PORT:-}" 1
    [[ -z ${NODE_RANK:-} ]] || ((NODE_RANK < num_nodes)) ||
        die "NODE_RANK is $NODE_RANK and NNODES $num_nodes; give 0 to $((num_nodes - 1))"
}
check_train_python() { # .venv is what make_env.sh makes; another Python may lack anything
    local missing
    missing=$("$python" - 2>/dev/null <<'END'
import importlib.util, sys
assert sys.version_info >= (3, 10)
names = "torch numpy tokenizers safetensors pyarrow orjson zstandard tqdm tensorboard yaml transformers matplotlib megatron"
print(*(name for name in names.split() if importlib.util.find_spec(name) is None))
END
    ) || die "TRAIN_PYTHON is '$python', which runs no Python >= 3.10; name one, or leave it out for .venv"
    [[ -z $missing ]] ||
        die "TRAIN_PYTHON is '$python' and lacks $missing; there: pip install -r requirements.txt -e ., or leave it out"
}

# ---------------------------------------------------------------------------------------------- recipes
# Numbers marked § stand in the StarCoder paper; the others in BigCode's launch file of that size, which
# used A100 GPUs with 80 GB. recipe_gpus (how many) and recipe_vocabulary serve --dry-run.

starcoder_recipe() { # what 1b, 3b, 7b and 15b share
    recipe_vocabulary=49152 # §5.3
    recipe=(
        --attention-head-type multiquery # §5.4 one key/value head
        --seq-length 8192                # §5.4
        --max-position-embeddings 8192   # §5.4 learned absolute positions
        --attention-dropout 0.1
        --hidden-dropout 0.1
        --micro-batch-size 1      # §5.6
        --adam-beta1 0.9          # §5.5
        --adam-beta2 0.95         # §5.5
        --adam-eps 1e-8           # §5.5
        --weight-decay 0.1        # §5.5
        --clip-grad 1.0
        --lr-decay-style cosine   # §5.5
        --lr-warmup-iters 2000    # §5.5
        --bf16                    # §5.6 10 % slower than fp16 was, taken for its stability
        --use-flash-attn          # §5.4
        --fim-rate 0.5            # §5.4
        --eval-iters 2
        --log-interval 10
        --valid-num-workers 0
        --structured-logs
    )
}

recipe_15b() { # StarCoderBase: 15.5 B parameters (§5.4), 1 T tokens (§5.5), 24 days
    recipe_gpus=512                          # §5.6 64 nodes of 8
    starcoder_recipe
    recipe+=(
        --num-layers 40                      # §5.4
        --hidden-size 6144                   # §5.4
        --num-attention-heads 48             # §5.4
        --init-method-std 0.01275            # 1 / sqrt(hidden size), as in 1b, 3b and 7b
        --tensor-model-parallel-size 4       # §5.6
        --pipeline-model-parallel-size 4     # §5.6 a replica on two nodes
        --sequence-parallel
        --use-distributed-optimizer
        --global-batch-size 512              # §5.6 4 M tokens: 32 replicas x 16 micro-batches
        --lr 3e-4                            # §5.5
        --min-lr 3e-5                        # §5.5
        --train-iters 250000                 # §5.5
        --lr-decay-iters 250000              # §5.5
        --save-interval 2500
        --eval-interval 2500
    )
}

recipe_7b() { # 7.3 B parameters, 1 T tokens
    recipe_gpus=512
    starcoder_recipe
    recipe+=(
        --num-layers 42
        --hidden-size 4096
        --num-attention-heads 32
        --init-method-std 0.015625
        --tensor-model-parallel-size 2
        --use-distributed-optimizer
        --global-batch-size 512              # 4 M tokens
        --lr 3e-4
        --min-lr 3e-5
        --train-iters 250000
        --lr-decay-iters 250000
        --save-interval 2500
        --eval-interval 2500
    )
}

recipe_3b() { # 3.0 B parameters, 1 T tokens
    recipe_gpus=256
    starcoder_recipe
    recipe+=(
        --num-layers 36
        --hidden-size 2816
        --num-attention-heads 22
        --init-method-std 0.01884
        --use-distributed-optimizer
        --global-batch-size 256              # 2 M tokens
        --lr 5e-4
        --min-lr 5e-5
        --train-iters 500000
        --lr-decay-iters 500000
        --save-interval 5000
        --eval-interval 5000
    )
}

recipe_1b() { # 1.1 B parameters, 1 T tokens
    recipe_gpus=128
    starcoder_recipe
    recipe+=(
        --num-layers 24
        --hidden-size 2048
        --num-attention-heads 16
        --init-method-std 0.02209
        --global-batch-size 128              # 1 M tokens
        --lr 4e-4
        --min-lr 4e-5
        --train-iters 1000000
        --lr-decay-iters 1000000
        --save-interval 10000
        --eval-interval 10000
    )
}

recipe_santacoder() { # SantaCoder (arXiv 2301.03988): 1.1 B parameters, 118 B tokens, 6.2 days on V100s
    recipe_gpus=96
    recipe_vocabulary=49280
    recipe=(
        --num-layers 24 --hidden-size 2048 --num-attention-heads 16
        --attention-head-type multiquery
        --init-method-std 0.022
        --seq-length 2048 --max-position-embeddings 2048
        --attention-dropout 0.1 --hidden-dropout 0.1
        --micro-batch-size 2 --global-batch-size 192
        --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
        --lr 2e-4 --lr-decay-style cosine --lr-warmup-fraction 0.02
        --train-iters 300000 --lr-decay-iters 600000 # the decay was planned for twice the run
        --fp16 --initial-loss-scale 65536
        --recompute-activations
        --fim-rate 0.5
        --save-interval 4000 --eval-interval 200 --eval-iters 10 --log-interval 10
    )
}

recipe_tiny() { # 3.8 M parameters, 0.5 M tokens: StarCoder's shape at a size that two cores train in minutes
    choose_tiny_layout
    recipe_gpus=$num_processes
    recipe_vocabulary=4096
    recipe=(
        --num-layers 4
        --hidden-size 256
        --num-attention-heads 8
        --attention-head-type multiquery
        --init-method-std 0.0625   # 1 / sqrt(hidden size), as in the published sizes
        --seq-length 256
        --max-position-embeddings 256
        --attention-dropout 0.0    # it sees a small part of its corpus once: nothing to overfit
        --hidden-dropout 0.0
        --micro-batch-size "$tiny_micro_batch"
        --global-batch-size 4      # 1,024 tokens: so early in training, more steps beat larger ones
        --tensor-model-parallel-size "$tiny_tensor_parallel"
        --adam-beta1 0.9 --adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0
        --lr 3e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-fraction 0.0625
        --train-iters 480
        --fim-rate 0.5
        --log-interval 20 --save-interval 80 --eval-interval 160 --eval-iters 12
        --num-workers 0            # one core a process: a loader of its own would only take turns with it
    )
    ((num_gpus == 0)) || recipe+=(--bf16)
}

# ---------------------------------------------------------------------------------------------- machine

count_gpus() {
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

choose_tiny_layout() { # a power of two up to 8: pairs share the 8 heads, and pairs share 4 sequences
    local wanted=$num_processes
    num_processes=1
    while ((num_processes * 2 <= wanted && num_processes < 8)); do
        num_processes=$((num_processes * 2))
    done
    tiny_tensor_parallel=$((num_processes > 1 ? 2 : 1))
    tiny_micro_batch=$((4 * tiny_tensor_parallel / num_processes))
}

head_node() { # the address of the allocation's first node; its name need not resolve
    local first address
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    address=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2 || true)
    printf '%s\n' "${address:-$first}"
}

make_launcher() {
    launcher=("$python" "$root"/tools/launch.py --nproc-per-node "$num_processes")
    if ((num_nodes == 1)); then
        launcher+=(--standalone)
        return
    fi
    local address=${MASTER_ADDR:-}
    [[ -n $node_rank ]] || die "NNODES is $num_nodes and NODE_RANK is not set; give 0 to $((num_nodes - 1))"
    [[ -n $address || -n ${SLURM_JOB_NODELIST:-} ]] ||
        die "NNODES is $num_nodes and MASTER_ADDR is not set; give the address of node 0"
    launcher+=(
        --nnodes "$num_nodes" --rdzv-backend c10d --rdzv-id "${SLURM_JOB_ID:-starcoder}"
        --rdzv-endpoint "${address:-$(head_node)}:${MASTER_PORT:-6000}"
        --rdzv-conf "is_host=$((node_rank == 0))"
    )
}

# Training saves and leaves when it is asked to. As a child in the background it can be asked at once: bash
# would hold a signal back until a child in the foreground ends.
child=0
stop() {
    trap - INT TERM
    ((child == 0)) || { kill -TERM "$child" 2>/dev/null && wait "$child" || true; }
    printf '\npretrain_starcoder.sh: stopped; the same command continues\n' >&2
    exit "$1"
}
run() {
    "$@" &
    child=$!
    local code=0
    wait "$child" || code=$?
    child=0
    return "$code"
}

# ------------------------------------------------------------------------------------------------- tiny

say() { printf '\n== %s\n' "$*"; }

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
                    --tokenizer-file "$tokenizer_file" --append-eod --shuffle --workers "$num_cores"
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
    "$python" "$root"/tools/sample_hf.py --model "$folder"
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
your own code    README.md, "Your own data"
a real size      MODEL=1b bash examples/pretrain_starcoder.sh --dry-run
END
}

# ------------------------------------------------------------------------------------------------- main

dry_run() { # dry_run FLAGS...: every check of a launch in a second, and one line where something is wrong
    "$python" "$root"/tools/pretrain_gpt.py "${recipe[@]}" --world-size "$world_size" "$@" --dry-run
}

dry_run_without_data() { # a few tokens stand in for what this machine lacks; the other checks remain
    local folder
    folder=$(mktemp -d)
    # NullTokenizer adds the end of text to the ids it is asked for. It knows no sentinels.
    local num_ids=$((recipe_vocabulary - 1))
    "$python" - "$folder/stand_in" "$num_ids" <<'END'
import sys
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
with IndexedDatasetBuilder(sys.argv[1], "uint16") as builder:
    builder.add_document([0] * 20_000 + [int(sys.argv[2])])
    builder.finalize()
END
    recipe+=(
        --train-data-path "$folder/stand_in" --valid-data-path "$folder/stand_in"
        --tokenizer-type NullTokenizer --vocab-size "$num_ids" --fim-rate 0
        --save "$folder/checkpoints"
    )
    echo "DATA_PATH is not set: a stand-in takes the place of data, tokenizer and checkpoints"
    local code=0
    dry_run "$@" || code=$?
    rm -rf "$folder"
    return "$code"
}

if has_flag --help "$@" || has_flag -h "$@"; then
    usage
    exit
fi
check_variables
# The batch script of an allocation runs on its first node only: start this one on each.
if ((num_nodes > 1)) && [[ -n ${SLURM_JOB_ID:-} && -z ${SLURM_STEP_ID:-} ]]; then
    exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 --export=ALL bash "${BASH_SOURCE[0]}" "$@"
fi
if [[ -n ${TRAIN_PYTHON:-} ]]; then check_train_python; else bash "$root"/tools/make_env.sh; fi
trap 'stop 130' INT # from here on: make_env.sh has its own word for it
trap 'stop 143' TERM

num_cores=$(getconf _NPROCESSORS_ONLN)
num_gpus=$(count_gpus)
num_processes=${GPUS_PER_NODE:-$num_gpus}
if [[ $model == tiny ]] && ((num_processes == 0)); then
    num_processes=$((num_cores > 1 ? 2 : 1))
fi
recipe=() recipe_gpus=0 recipe_vocabulary=0
"recipe_$model"
world_size=$((num_nodes * num_processes))
[[ -z ${data_path} ]] || { read -r -a paths <<<"$data_path" && recipe+=(--data-path "${paths[@]}"); }
[[ -z $tokenizer_file ]] ||
    recipe+=(--tokenizer-type TokenizerFromFile --tokenizer-file "$tokenizer_file")
has_data=no
if [[ -n $data_path ]] || has_flag '--*data-path' "$@" || has_flag '--*split-paths*' "$@"; then
    has_data=yes
fi

if has_flag --dry-run "$@"; then
    [[ -n ${GPUS_PER_NODE:-} ]] || world_size=$recipe_gpus
    if [[ $has_data == no ]]; then
        dry_run_without_data "$@"
        exit
    fi
fi
recipe+=(--save "$save" --load "$save")
if has_flag --dry-run "$@"; then
    dry_run "$@"
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
((num_processes > 0)) || die "no GPU on this machine; MODEL=$model needs some, or GPUS_PER_NODE=N for CPU processes"

say "training MODEL=$model: $num_nodes node(s) of $num_processes process(es)"
# Most mistakes show here, in a line, instead of once a process in torchrun's report.
messages=$(dry_run "$@" 2>&1) || { code=$? && printf '%s\n' "$messages" >&2 && exit "$code"; }
make_launcher
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((num_cores > num_processes ? num_cores / num_processes : 1))}
# torchrun's patience with processes that save because they were told to leave; its own default is 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}
if [[ $model != tiny ]]; then
    exec "${launcher[@]}" "$root"/tools/pretrain_gpt.py "${recipe[@]}" "$@"
fi
run "${launcher[@]}" "$root"/tools/pretrain_gpt.py "${recipe[@]}" "$@"
[[ ${node_rank:-0} != 0 ]] || finish_tiny
