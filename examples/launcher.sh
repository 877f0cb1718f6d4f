#!/usr/bin/env bash
# What the examples share: the way of a run, checks, this machine, its place among nodes, and Slurm. They source this
# file, and examples/recipes.sh.
#
# Needs: root (the repository), python, model, data_path, run_dir and save, set before its functions are called.
# Reads: TRAIN_PYTHON, GPUS_PER_NODE, CUDA_VISIBLE_DEVICES, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT,
#        MAX_RESTARTS, MAX_REQUEUES, REQUEUE, PREFLIGHT and Slurm's variables; docs/cluster.md says what for.
# shellcheck disable=SC2034,SC2154  # what begin sets is read by who sources it; those
set -euo pipefail

num_nodes=${NNODES:-${SLURM_NNODES:-1}}
node_rank=${NODE_RANK:-${SLURM_NODEID:-}}
num_processes=0 num_gpus=0 num_cores=1 # count_processors fills them in
launcher=()
max_restarts=${MAX_RESTARTS:-3} # crashes that a launch survives
readonly LEFT=75                # the exit code of a run that saved and left because it was asked to
readonly MISTAKE=2              # of a user's, which has to be corrected first
readonly FORGOTTEN=3            # of a run that is finished and lost more than it may (tools/forgetting.py)

say() { printf '\n== %s\n' "$*"; }
die() {
    printf '%s: error: %s\n' "$(basename "$0")" "$1" >&2
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

# --------------------------------------------------------------------------------------- the way of a run

begin() { # begin SCRIPT FLAGS...: to where the data is chosen; sets recipe, recipe_gpus, world_size and has_data
    local script=$1
    shift
    check_node_variables
    [[ $model != tiny ]] || max_restarts=${MAX_RESTARTS:-0}
    if is_batch_script && ! has_flag --dry-run "$@" && ! has_flag --plan "$@"; then
        run_on_nodes "$script" "$@"
    fi
    keep_node_log
    prepare_python
    catch_signals # from here on: make_env.sh has its own word for them
    count_processors
    if [[ $model == tiny ]] && ((num_processes == 0)); then
        num_processes=$((num_cores > 1 ? 2 : 1))
    fi
    recipe=() recipe_gpus=0 recipe_vocabulary=0
    "recipe_$model"
    world_size=$((num_nodes * num_processes))
    has_data=no
    if [[ -n $data_path ]] || has_flag '--*data-path' "$@" || has_flag '--*split-paths*' "$@"; then
        has_data=yes
    fi
}
make_ready() { # make_ready WHAT FLAGS...: check everything, and make the launcher
    local what=$1 messages code
    shift
    ((num_processes > 0)) ||
        die "no GPU on this machine; MODEL=$model needs some, or GPUS_PER_NODE=N for CPU processes"
    say "$what MODEL=$model: $num_nodes node(s) of $num_processes process(es)"
    # Most mistakes show here, in a line, instead of once a process in torchrun's report.
    messages=$(dry_run "$@" 2>&1) || { code=$? && printf '%s\n' "$messages" >&2 && exit "$code"; }
    prepare_launch
    check_cluster "${recipe[@]}" "$@"
    make_launcher
}
train() { # train FLAGS...: returns on the first node, and there only when the run is complete
    local code=0
    run "${launcher[@]}" "$root"/tools/pretrain_gpt.py "${recipe[@]}" "$@" || code=$?
    say_how_to_go_on "$code"
    ((code == 0)) || exit "$code"
    [[ ${node_rank:-0} == 0 ]] || exit 0
}

# ----------------------------------------------------------------------------------------------- checks

check_number() { # check_number NAME VALUE LEAST [MOST]
    [[ -z $2 ]] && return
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && (($2 >= $3 && $2 <= ${4:-999999})) && return
    die "$1 is '$2'; give a whole number from $3 ${4:+to }${4:-on}, or leave it out"
}
check_node_variables() {
    check_number GPUS_PER_NODE "${GPUS_PER_NODE:-}" 1
    check_number NNODES "${NNODES:-}" 1
    check_number NODE_RANK "${NODE_RANK:-}" 0
    check_number MASTER_PORT "${MASTER_PORT:-}" 1 65535
    check_number MAX_RESTARTS "${MAX_RESTARTS:-}" 0
    check_number MAX_REQUEUES "${MAX_REQUEUES:-}" 0
    [[ -z ${NODE_RANK:-} ]] || ((NODE_RANK < num_nodes)) ||
        die "NODE_RANK is $NODE_RANK and NNODES $num_nodes; give 0 to $((num_nodes - 1))"
}
check_train_python() { # .venv is what make_env.sh makes; another Python may lack anything
    local missing
    missing=$("$python" - 2>/dev/null <<'END'
import importlib.util, sys
assert sys.version_info >= (3, 10)
names = "torch numpy tokenizers safetensors pyarrow orjson zstandard tqdm tensorboard yaml transformers matplotlib"
missing = [name for name in names.split() if importlib.util.find_spec(name) is None]
# Another project may be called megatron, too.
if importlib.util.find_spec("megatron") is None or importlib.util.find_spec("megatron.cli") is None:
    missing.append("megatron (this one)")
print(*missing)
END
    ) || die "TRAIN_PYTHON is '$python', which runs no Python >= 3.10; name one, or leave it out for .venv"
    [[ -z $missing ]] ||
        die "TRAIN_PYTHON is '$python' and lacks $missing; there: pip install -r requirements.txt -e ., or leave it out"
}
prepare_python() {
    if [[ -n ${TRAIN_PYTHON:-} ]]; then check_train_python; else bash "$root"/tools/make_env.sh; fi
}

# ---------------------------------------------------------------------------------------------- machine

count_gpus() { # those that processes will see: CUDA_VISIBLE_DEVICES may name some of the machine's
    local count=0 visible
    if command -v nvidia-smi >/dev/null; then
        count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
    fi
    if [[ -n ${CUDA_VISIBLE_DEVICES+given} ]]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        [[ ${visible[0]:-} != -1 ]] || visible=()
        ((${#visible[@]} >= count)) || count=${#visible[@]}
    fi
    echo "$count"
}
count_processors() {
    num_cores=$(getconf _NPROCESSORS_ONLN)
    num_gpus=$(count_gpus)
    num_processes=${GPUS_PER_NODE:-$num_gpus}
}

node_address() { # node_address NAME: where Slurm reaches a node; its name need not resolve
    local address
    address=$(scontrol show node "$1" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2 || true)
    printf '%s\n' "${address:-$1}"
}
head_node() { # the address of the allocation's first node
    local first
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    node_address "$first"
}

make_launcher() { # make_launcher [SUFFIX]: torchrun's options; the suffix keeps two launches of a job apart
    launcher=(
        "$python" "$root"/tools/launch.py --nproc-per-node "$num_processes" --max-restarts "$max_restarts"
    )
    if ((num_nodes == 1)); then
        launcher+=(--standalone)
        return
    fi
    local address=${MASTER_ADDR:-} port=${MASTER_PORT:-6000}
    [[ -n $node_rank ]] || die "NNODES is $num_nodes and NODE_RANK is not set; give 0 to $((num_nodes - 1))"
    [[ -n $address || -n ${SLURM_JOB_NODELIST:-} ]] ||
        die "NNODES is $num_nodes and MASTER_ADDR is not set; give the address of node 0"
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        [[ -n ${MASTER_PORT:-} ]] || port=$((10000 + SLURM_JOB_ID % 20000)) # jobs may share a node
        [[ -z ${SLURMD_NODENAME:-} ]] || launcher+=(--local-addr "$(node_address "$SLURMD_NODENAME")")
    fi
    launcher+=(
        --nnodes "$num_nodes" --rdzv-backend c10d --rdzv-id "${SLURM_JOB_ID:-starcoder}${1:-}"
        --rdzv-endpoint "${address:-$(head_node)}:$port"
        --rdzv-conf "is_host=$((node_rank == 0))"
    )
}

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

plan() { # plan --plan FLAGS...: what the recipe holds, takes and costs on the GPUs it was made for, or --world-size
    local flags=() flag
    for flag in "$@"; do
        [[ $flag == --plan ]] || flags+=("$flag")
    done
    "$python" "$root"/tools/plan.py --world-size "$recipe_gpus" --vocab-size "$recipe_vocabulary" "${recipe[@]}" "${flags[@]}"
}

prepare_launch() {
    # How long a launcher waits for processes that save because they were told to leave; torchrun's 30 s are short.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}
}

check_cluster() { # check_cluster FLAGS...: PREFLIGHT=1 asks for it
    [[ -n ${PREFLIGHT:-} ]] || return 0
    make_launcher -preflight
    run "${launcher[@]}" "$root"/tools/preflight.py "$@"
}

# Training saves and leaves when it is asked to. As a child in the background it can be asked at once: bash
# would hold a signal back until a child in the foreground ends. What the child makes of it is its exit code.
child=0 is_asked=no is_interrupted=no
on_signal() { # on_signal NAME CODE
    is_asked=yes is_interrupted=yes
    if ((child == 0)); then
        printf '\n%s: stopped; the same command continues\n' "$(basename "$0")" >&2
        exit "$2"
    fi
    kill -"$1" "$child" 2>/dev/null || true
}
catch_signals() {
    trap 'on_signal TERM 130' INT
    trap 'on_signal TERM 143' TERM
    trap 'on_signal USR1 138' USR1
}
run() { # run COMMAND...: give its exit code, also after a signal
    local code
    "$@" &
    child=$!
    while
        code=0 is_interrupted=no
        wait "$child" || code=$?
        [[ $is_interrupted == yes ]]
    do :; done
    child=0
    return "$code"
}

say_how_to_go_on() { # say_how_to_go_on CODE: the last word of a run that ended early
    local why=stopped
    (($1 != 0 && $1 != MISTAKE)) || return 0
    (($1 == LEFT)) || why="ended with exit code $1; what it said is above"
    printf '\n%s: %s; the same command continues from the last checkpoint\n' "$(basename "$0")" "$why" >&2
}

# ------------------------------------------------------------------------------------------------ Slurm

is_batch_script() { [[ -n ${SLURM_JOB_ID:-} && -z ${SLURM_STEP_ID:-} ]]; }

run_on_nodes() { # run_on_nodes SCRIPT FLAGS...: the script once on each node; requeue the job if that helps
    local code=0 before
    catch_signals
    before=$(saved_iteration)
    # Launchers agree when to leave and do so together: 60 s after the first one something is wrong.
    run srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 --cpu-bind=none --label --export=ALL bash "$@" ||
        code=$?
    [[ -z ${REQUEUE:-} ]] || requeue_after "$code" "$before"
    exit "$code"
}

saved_iteration() { cat "$save"/latest_checkpointed_iteration.txt 2>/dev/null || echo none; }

requeue_after() { # requeue_after CODE BEFORE: a run that was asked to leave goes on; a failed one where it got further
    local code=$1 before=$2 state number=${SLURM_RESTART_COUNT:-0} most=${MAX_REQUEUES:-3}
    case $code in
        0) return ;;
        "$MISTAKE")
            echo "not requeued: a mistake has to be corrected first" >&2
            return
            ;;
        "$FORGOTTEN")
            echo "not requeued: the run is finished; whether what it forgot matters is for people to judge" >&2
            return
            ;;
    esac
    state=$(scontrol show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z]*' | cut -d= -f2 || true)
    if [[ $state != RUNNING ]]; then # scancel, or Slurm requeues it itself
        echo "not requeued: the job is $state" >&2
    elif [[ $code == "$LEFT" ]] || [[ $is_asked == yes && $code =~ ^(130|138|143)$ ]]; then
        # Those: the signal met a step that could not hear it yet. Asked and failed is failed: it might do so for ever.
        requeue "asked to leave before it was finished"
    elif [[ $(saved_iteration) != "$before" ]]; then
        requeue "failed with exit code $code, after it had saved more"
    elif ((number < most)); then
        requeue "failed with exit code $code; it was requeued $number times, MAX_REQUEUES is $most"
    else
        echo "not requeued: failed with exit code $code and saved nothing since, $number requeues before" >&2
    fi
}
requeue() { # requeue WHY
    echo "requeued: $1" >&2
    scontrol requeue "$SLURM_JOB_ID"
}

keep_node_log() { # in a step, what this node says also goes to a file of its own, appended to by the next try
    [[ -n ${SLURM_STEP_ID:-} ]] || return 0
    mkdir -p "$run_dir"/logs
    local file=$run_dir/logs/job-$SLURM_JOB_ID-node-${SLURM_NODEID:-0}.log
    # Signals of the step must not end the one who writes down what comes of them.
    exec > >(trap '' INT TERM USR1 HUP && exec tee -a "$file") 2>&1
}
