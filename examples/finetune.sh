#!/usr/bin/env bash
# How a model is trained on from the weights of another, and what that made it forget. The scripts
# finetune_python.sh and finetune_instruct.sh source this file and call finetune with their flags.
#
# Needs: script (the caller's path), root, model, run_dir, save, python, load and data_path; functions stage and
#        stage_tiny, which add to recipe, finish, which shows the result, and give_tiny_data or choose_data, which add
#        data flags.
# Reads: TOKENIZER_FILE, VALID_PATHS, ALLOW_FORGETTING, MAX_LOSS_RISE, and what examples/launcher.sh reads
# shellcheck disable=SC2034,SC2154  # what it sets is read by who it calls; those
set -euo pipefail

valid_groups=()
forgetting_flags=() # a script may add some

has_checkpoint() { [[ -f $1/latest_checkpointed_iteration.txt || -f $1/metadata.json ]]; } # a run's, or one of them
is_hugging_face() { [[ -f $1/config.json ]] && ! has_checkpoint "$1"; }

find_tokenizer() {
    local file folder=$load
    [[ -z $tokenizer_file ]] || return 0
    [[ ! -f $load/metadata.json ]] || folder=$load/.. # a run keeps it beside its checkpoints
    for file in "$folder"/tokenizer.json "$folder"/tokenizer/tokenizer.json; do
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
    wait_for_file "$load"/latest_checkpointed_iteration.txt
}
wait_for_file() { # wait_for_file FILE: other nodes, until the first one has made it
    local seconds=0
    until [[ -f $1 ]]; do
        ((seconds < 3600)) || die "$1 is not there after an hour; does every node see $run_dir?"
        sleep 5
        seconds=$((seconds + 5))
    done
}

add_valid_groups() { # add_valid_groups PREFIX...: each validated by itself, under its name
    local prefix name
    for prefix in "$@"; do
        [[ -f $prefix.idx ]] || die "VALID_PATHS names '$prefix', and $prefix.idx does not exist"
        name=$(basename "$prefix")
        name=${name%_document} && name=${name%_text} && name=${name%_messages}
        valid_groups+=("${name%_valid}: 1 0:1 $prefix")
    done
}
names_valid_sets() { has_flag '--valid-*' "$@" || has_flag '--split' "$@"; }

choose_data() { # choose_data FLAGS...: adds to recipe what is trained on and what is validated
    local paths=()
    [[ -z ${VALID_PATHS:-} ]] || { read -r -a paths <<<"$VALID_PATHS" && add_valid_groups "${paths[@]}"; }
    if [[ -n $data_path ]]; then
        read -r -a paths <<<"$data_path"
        if ((${#valid_groups[@]} > 0)) || has_flag '--valid-*' "$@"; then
            recipe+=(--train-data-path "${paths[@]}")
        else
            recipe+=(--data-path "${paths[@]}")
        fi
    elif [[ $has_data == no && $model == tiny ]]; then
        give_tiny_data
    elif [[ $has_data == no ]]; then
        die "DATA_PATH is not set; give the prefix of .bin and .idx that tools/preprocess_data.py wrote"
    fi
    if ((${#valid_groups[@]} > 0)); then
        recipe+=(--valid-weighted-split-paths "${valid_groups[@]}")
    elif ! names_valid_sets "$@"; then
        echo "validated is a part of the training data alone: what else the model forgets stays unseen; VALID_PATHS names sets"
    fi
}

judge_forgetting() { # exit code 3 where a set lost more than it may; all is saved by then
    local code=0
    say "what was forgotten, by validation set"
    "$python" "$root"/tools/forgetting.py --metrics "$save/metrics.jsonl" --output "$run_dir/forgetting" \
        "${forgetting_flags[@]}" ${MAX_LOSS_RISE:+--max-loss-rise "$MAX_LOSS_RISE"} || code=$?
    ((code != 0)) || return 0
    if ((code == FORGOTTEN)) && [[ -n ${ALLOW_FORGETTING:-} ]]; then
        echo "ALLOW_FORGETTING is set: this is no failure"
        return 0
    fi
    ((code != FORGOTTEN)) || cat >&2 <<END

$(basename "$0"): THE MODEL FORGOT: see above, and $run_dir/forgetting.md. All is saved; to take it as it is:
ALLOW_FORGETTING=1 and the same command. To keep more: blend in what it began with, fewer steps, a lower --lr.
END
    return "$code"
}

finetune() { # finetune FLAGS...
    if has_flag --help "$@" || has_flag -h "$@"; then
        usage
        exit
    fi
    [[ $model =~ ^(tiny|1b|3b|7b|15b)$ ]] || die "MODEL is '$model'; allowed: tiny, 1b, 3b, 7b, 15b"
    begin "$script" "$@"
    tokenizer_file=${TOKENIZER_FILE:-}
    if [[ $model == tiny ]]; then
        load=${load:-$root/runs/starcoder-tiny/checkpoints}
        stage_tiny
    else
        stage
    fi
    if has_flag --dry-run "$@" && [[ $has_data == no && $model != tiny ]]; then
        check_without_data "$@"
        exit
    fi
    choose_weights
    choose_data "$@"
    if is_hugging_face "$load"; then
        convert_load
    elif ! has_checkpoint "$load"; then
        die "LOAD is '$load', which holds no run's checkpoints (latest_checkpointed_iteration.txt) and no config.json"
    fi
    recipe+=(--load "$load" --save "$save")
    choose_length "$@"
    if has_flag --dry-run "$@"; then
        [[ -n ${GPUS_PER_NODE:-} || $model == tiny ]] || world_size=$recipe_gpus
        dry_run "$@"
        exit
    fi
    train_and_judge "$@"
}

check_without_data() { # what a laptop can check: model, layout and batch, as a run that begins with random weights
    local index
    for index in "${!recipe[@]}"; do
        [[ ${recipe[index]} != --finetune ]] || unset "recipe[index]"
    done
    [[ -n ${GPUS_PER_NODE:-} ]] || world_size=$recipe_gpus
    dry_run_without_data "$@"
}

choose_weights() { # LOAD, or the demo's, and the tokenizer that lies with it
    [[ -n $load ]] || die "LOAD is not set; give the checkpoints of a run, or a Hugging Face folder"
    if [[ ! -d $load ]]; then
        [[ $model != tiny || -n ${LOAD:-} ]] ||
            die "$load does not exist; bash examples/pretrain_starcoder.sh makes it, or set LOAD"
        die "LOAD is '$load', which is no folder; give the checkpoints of a run, or a Hugging Face folder on disk"
    fi
    find_tokenizer
    [[ -z $tokenizer_file ]] ||
        recipe+=(--tokenizer-type TokenizerFromFile --tokenizer-file "$tokenizer_file")
}

should_judge() { :; } # a script may say no
choose_length() { :; } # a script may set the number of steps here, which knows its data by now

train_and_judge() {
    make_ready fine-tuning "$@"
    train "$@"
    "$python" "$root"/tools/plot_loss.py --metrics "$save/metrics.jsonl" --output "$run_dir/loss.png" >/dev/null
    finish
    say "made in $run_dir; to Hugging Face: tools/convert_to_hf.py --load '$save' --save DIR"
    should_judge || exit 0
    judge_forgetting || exit "$?"
}
