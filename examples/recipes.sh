#!/usr/bin/env bash
# The published models as flags of tools/pretrain_gpt.py; the examples source this file.
#
# recipe_MODEL sets recipe (an array of flags), recipe_gpus (how many GPUs it was made for) and
# recipe_vocabulary. Numbers marked § stand in the StarCoder paper (arXiv 2305.06161); the others in BigCode's
# launch file of that size, which used A100 GPUs with 80 GB.
#
# Needs: num_processes and num_gpus of this node, for recipe_tiny.
# shellcheck disable=SC2034,SC2154  # what it sets is read by who sources it, who sets what it reads
set -euo pipefail

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
        --async-save              # every quarter of an hour by the plan; two stay beside every tenth or more
        --keep-last 2
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
        --save-interval 100 --save-retain-interval 2500
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
        --save-interval 250 --save-retain-interval 2500
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
        --save-interval 500 --save-retain-interval 5000
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
        --save-interval 1000 --save-retain-interval 10000
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

choose_tiny_layout() { # a power of two up to 8: pairs share the 8 heads, and pairs share 4 sequences
    local wanted=$num_processes
    num_processes=1
    while ((num_processes * 2 <= wanted && num_processes < 8)); do
        num_processes=$((num_processes * 2))
    done
    tiny_tensor_parallel=$((num_processes > 1 ? 2 : 1))
    tiny_micro_batch=$((4 * tiny_tensor_parallel / num_processes))
}
