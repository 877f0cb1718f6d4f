"""Megatron's flags that are no options here, NVIDIA's and BigCode's: what they set, or what to do instead.

Knows nothing of parsers, nor of what is an option.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

# Flags that say the same as an option does: its name and value, and the help.
ALIASES: dict[str, tuple[str, str | bool, str]] = {
    "--recompute-activations": (
        "recompute_granularity",
        "selective",
        "same as --recompute-granularity selective",
    ),
    "--use-flash-attn": ("attention_backend", "flash", "same as --attention-backend flash"),
    "--use-rotary-position-embeddings": (
        "position_embedding_type",
        "rope",
        "same as --position-embedding-type rope",
    ),
    "--no-gradient-accumulation-fusion": (
        "gradient_accumulation_fusion",
        "off",
        "same as --gradient-accumulation-fusion off",
    ),
    "--override-opt-param-scheduler": (
        "override_opt_param_scheduler",
        True,
        "same as --override-opt_param-scheduler",
    ),
    "--use-checkpoint-opt-param-scheduler": (
        "use_checkpoint_opt_param_scheduler",
        True,
        "same as --use-checkpoint-opt_param-scheduler",
    ),
}

# What to do, and the flags that it answers; of several patterns that a flag matches the first counts.
_ANSWERS: dict[str, str] = {
    # said in another way
    "use --micro-batch-size": "--batch-size",
    "use --lr-warmup-fraction": "--warmup",
    "use --tensor-model-parallel-size": "--model-parallel-size",
    "use --recompute-granularity full": "--checkpoint-activations",
    "use --recompute-method": "--activations-checkpoint-method",
    "use --recompute-num-layers": "--checkpoint-num-layers --activations-checkpoint-num-layers",
    "use --sequence-parallel with --recompute-granularity full": "--distribute-saved-activations",
    "use --seq-length": "--encoder-seq-length",
    "use --num-layers": "--encoder-num-layers",
    "use --window-size": "--sliding-window",
    "use --rotary-base": "--rotary-theta",
    "use --layernorm-epsilon": "--norm-epsilon",
    "use --attention-backend to choose a kernel": "--no-masked-softmax-fusion --flash-attention-version",
    "use --fp8-format hybrid": "--fp8-hybrid --fp8-e4m3",
    "use --tokenizer-type HuggingFaceTokenizer --tokenizer-model DIR": "--tokenizer-name-or-path --tiktoken-*",
    "use --load and --finetune": "--no-load-iteration --pretrained-checkpoint",
    "use --save-interval": "--persistent-save-interval --non-persistent-*",
    "use --config": "--yaml-cfg",
    "use --wandb-project-name": "--wandb-project",
    "use --wandb-entity-name": "--wandb-entity",
    "use --log-interval": "--tensorboard-log-interval",
    "use --distributed-timeout-minutes": "--distributed-timeout-seconds-after-init",
    "use --use-distributed-optimizer": "--use-torch-fsdp2 --use-megatron-fsdp --data-parallel-sharding-strategy",
    "use --num-distributed-optimizer-instances": "--outer-dp-sharding-strategy",
    "use --decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers or --account-for-loss-in-pipeline-split":
        "--pipeline-model-parallel-layout",
    "use --fim-rate": "--fim-data",
    "use --fragment-fim-rate": "--fim-fragment-rate",
    "use --reset-attention-mask": "--dataloader-inter-document-masking",
    "use --train-data-path, --valid-data-path and --test-data-path": "--data-args-path --per-split-data-args-path",
    "use --valid-weighted-split-paths, whose groups have names": "--multiple-validation-sets --validation-set-names",
    "use --eval-iters": "--full-validation",
    "use --eval-interval": "--start-eval-at-iter",
    "use --make-vocab-size-divisible-by": "--padded-vocab-size --*-pad-vocab-size",
    "use tools/verify.py sample": "--sanity-check-dataloader-interval",
    "use --loss-spike-policy": "--check-for-spiky-loss --check-for-large-grads --iterations-to-skip",
    "use --data-path; tools/collect_source.py and tools/preprocess_data.py make a small dataset": "--mock-data",
    "write N into latest_checkpointed_iteration.txt of --load": "--ckpt-step --override-ckpt-iteration",
    "give the model's flags: a checkpoint is checked against them": "--use-checkpoint-args "
        "--use-mp-args-from-checkpoint-args --*use-tokenizer-model-from-checkpoint-args",
    "use tools/evaluate.py, which does not train": "--skip-train",
    "use tools/convert_to_hf.py": "--ckpt-convert-*",
    "use tools/generate.py or tools/serve.py to write text": "--inference-* --no-inference-* --max-tokens-to-oom "
        "--flash-decode --enable-chunked-prefill --use-legacy-static-engine --num-speculative-tokens",
    "use --vocab-file": "--vocab",
    "use --workers, and --shard on several nodes": "--partitions --keep-sequential-samples --find-optimal-num-workers "
        "--workers-to-check --max-documents",
    "use tools/preprocess_data.py, which reads conversations": "--sft --sft-* --chat-template",
    "use tools/bench.py train, which times and profiles steps": "--profile* --use-pytorch-profiler --pytorch-profiler-* "
        "--nvtx-ranges --record-* --memory-snapshot-path --timing-log-* --transformer-timers --log-memory-* "
        "--log-timers-to-tensorboard --log-device-memory-used --no-barrier-with-level-1-timing",
    # so without being asked, or nothing to choose
    "leave out: how far the work has come is shown by itself": "--log-interval",
    "leave out: there is one implementation": "--transformer-impl --use-mcore-models --use-legacy-models --use-te-* "
        "--te-* --disable-jit-fuser --enable-experimental --*kitchen-*",
    "leave out: --kernels chooses how operations are computed": "--no-bias-dropout-fusion --no-persist-layer-norm "
        "--*rope-fusion --no-bias-swiglu-fusion --cross-entropy-*fusion* --fused-residual-rmsnorm "
        "--no-gradient-reduce-div-fusion",
    "leave out: GELU is its tanh form, which Megatron's fusion computes": "--openai-gelu --no-bias-gelu-fusion --onnx-safe",
    "leave out: the softmax runs in fp32, and scores are never scaled by layer": "--attention-softmax-in-fp32 "
        "--*query-key-layer-scaling",
    "leave out: no mask of all pairs is made": "--*create-attention-mask-in-dataloader",
    "leave out: datasets are memory-mapped and have no index files to build or cache": "--data-impl --dataset-impl "
        "--mmap-warmup --data-cache-path --no-mmap-bin-files --dataloader-* --num-dataset-builder-threads "
        "--mid-level-dataset-surplus --object-storage-cache-path --per-dataset-sequences-path --no-data-sharding",
    "leave out: fully_shard reduces gradients, in fp32, and overlaps what it can": "--DDP-impl --ddp-* "
        "--overlap-grad-reduce --overlap-param-gather* --*-align-grad-reduce --*-align-param-gather "
        "--no-contiguous-buffers-in-local-ddp --create-all-gather-group --main-grads-dtype --main-params-dtype "
        "--grad-reduce-in-bf16 --*fsdp*",
    "leave out: there is one order of communication": "--no-async-tensor-model-parallel-allreduce --*tp-comm-* "
        "--*overlap-p2p-communication* --defer-embedding-wgrad-compute --wgrad-deferral-limit --delay-wgrad-compute "
        "--no-scatter-gather-tensors-in-pipeline --use-ring-exchange-p2p --use-tp-pp-dp-mapping --cp-comm-type "
        "--microbatch-group-size-per-virtual-pipeline-stage --hierarchical-context-parallel-sizes "
        "--symmetric-ar-type --high-priority-* --pipeline-model-parallel-comm-backend",
    "leave out: torchrun says it through the environment": "--local_rank --local-rank --lazy-mpu-init",
    "leave out: NCCL is set by its own environment variables": "--nccl-* --use-nccl-ub --use-sharp --sharp-* "
        "--*flight-recorder-* --disable-gloo-process-groups --disable-symmetric-registration",
    "leave out: initial weights are the same on every device and in every layout": "--use-cpu-initialization "
        "--init-model-with-meta-device --no-initialization --data-parallel-random-init",
    "leave out: random numbers follow from --seed and have no state": "--no-save-rng",
    "leave out: checkpoints are sharded, hashed, and load in any layout": "--ckpt-* --no-ckpt-* --dist-ckpt-* "
        "--use-dist-ckpt* --auto-detect-ckpt-format --async-strategy --async-ckpt-* --use-persistent-ckpt-worker "
        "--verify-integrity --replication* --distrib-optim-* --load-main-params-from-ckpt --*save-tokenizer-assets",
    "leave out: metrics.jsonl, TensorBoard and the terminal have it": "--log-throughput --log-progress "
        "--log-validation-ppl-to-tensorboard --no-log-learnig-rate-to-tensorboard",
    "leave out: it is not logged": "--log-*-to-tensorboard --*log-loss-scale-to-tensorboard --log-params-norm "
        "--log-num-zeros-in-grad --log-max-attention-logit --log-energy --logging-level --tensorboard-queue-size "
        "--save-*-interval",
    "leave out: a Weights & Biases run has the name of the folder of --save": "--wandb-exp-name --wandb-save-dir",
    "leave out: the loss is the mean over all tokens that carry one": "--calculate-per-token-loss",
    "leave out: a step whose gradients are not finite is always skipped": "--*check-for-nan-in-loss-and-grad",
    "leave out: SIGTERM, SIGINT and SIGUSR1 save and leave": "--exit-signal --exit-signal-handler-for-*",
    "leave out: a watchdog ends runs that hang, and tools/launch.py restarts those that crash": "--inprocess-* --ft-* "
        "--enable-ft-package --calc-ft-timeouts --rerun-mode --error-injection-* --fault-injector-* --*straggler* "
        "--result-rejected-tracker-filename --gpu-sniff-test-interval --adlr-autoresume*",
    "leave out: nothing is sent to other services": "--*one-logger* --app-tag-* --otel-* --*-msc "
        "--run-workload-inspector-server --config-logger-dir",
    "leave out: memory is freed as Python and torch do by themselves": "--*manual-gc* --empty-unused-memory-level "
        "--train-sync-interval",
    "leave out: a tensor's 8-bit scale is computed anew each time": "--fp8-margin --fp8-interval --fp8-amax-* "
        "--fp8-recipe --*fp8-wgrad --first-last-layers-bf16 --num-layers-at-*-in-bf16",
    "leave out: the tokenizer's own files say it": "--fim-*-token --null-tokenizer-*-id --tokenizer-special-tokens "
        "--tokenizer-metadata --tokenizer-hf-* --*tokenizer-sentencepiece-* --trust-remote-code",
    "leave out: validation takes the batches of training": "--eval-micro-batch-size --eval-global-batch-size",
    # another model, optimizer or task
    "positions are learned or rotary (--position-embedding-type); nothing else is implemented": "--no-position-embedding "
        "--relative-attention-*",
    "rope turns whole heads, their halves as in Hugging Face, at unscaled positions; nothing else is implemented":
        "--rotary-* --*rope-scaling* --rope-type --no-rope-freq --yarn-* --mrope-section",
    "norms are LayerNorm; nothing else is implemented": "--normalization --apply-layernorm-1p --qk-layernorm "
        "--qk-l2-norm --apply-wd-to-qk-layernorm",
    "the MLP is GELU between two linear layers; nothing else is implemented": "--swiglu --squared-relu --glu-* "
        "--quick-geglu --activation-func-clamp-value",
    "linear layers all have a bias or, with --disable-bias-linear, none": "--add-qkv-bias",
    "layers are pre-norm, causal attention and an MLP, all alike; nothing else is implemented": "--num-experts --moe-* "
        "--expert-* --overlap-moe-* --ep-overlap-* --multi-latent-attention --q-lora-rank --kv-lora-rank "
        "--qk-head-dim --qk-pos-emb-head-dim --v-head-dim --mla-* --cache-mla-latents --mscale* --*dsa-* --linear-* "
        "--experimental-attention-* --attention-output-gate --softmax-type --window-attn-skip-freq --*mamba-* "
        "--*hybrid-* --gdp-* --*mhc-* --fp32-residual-connection --apply-residual-connection-post-layernorm --spec "
        "--heterogeneous-* --mtp-*",
    "initial weights are normal, by --init-method-std; nothing else is implemented": "--init-method-xavier-uniform "
        "--embedding-init-method-std --use-mup --mup-*",
    "the loss is computed in fp32; nothing else is implemented": "--fp16-lm-cross-entropy --output-logit-dtype",
    "all weights are trained by AdamW, with one learning rate; nothing else is implemented": "--sgd-momentum --muon-* "
        "--lion-* --qk-clip* --decoupled-* --head-lr-mult --no-weight-decay-cond-type --freeze-all-layers",
    "the learning rate warms up from 0; nothing else is implemented": "--lr-warmup-init",
    "the batch grows by --rampup-batch-size; nothing else is implemented": "--step-batch-size-schedule "
        "--decrease-batch-size-if-needed --phase-transition-iterations",
    "nothing is kept in host memory; --recompute-granularity saves that of the device": "--*offload* --no-pin-cpu-*",
    "CUDA graphs are not implemented": "--*cuda-graph*",
    "--fp8-format sets all there is of 8 bits": "--fp8-* --fp4-*",
    "fragments are not chosen by what they begin with": "--fim-no-prefix",
    "GPT is trained, on text; nothing else is implemented": "--decoder-num-layers --decoder-seq-length "
        "--vocab-extra-ids --pipeline-model-parallel-split-rank --standalone-embedding-stage --mask-* --short-seq-prob "
        "--bert-* --output-bert-embeddings --retro-* --retriever-* --ict-* --biencoder-* --indexer-* --vision-* "
        "--dino-* --swin-* --img-* --patch-dim --num-channels --num-classes "
        "--classes-fraction --data-per-class-fraction --iter-per-epoch --sample-rate --query-in-block-prob "
        "--use-one-sent-docs --block-data-path --titles-data-path --evidence-data-path --embedding-path --*rl-* --grpo-* --perform-rl-step --logits-*",
}  # fmt: skip
_PATTERNS = [
    (pattern, answer) for answer, patterns in _ANSWERS.items() for pattern in patterns.split()
]


def answer_to(flag: str) -> str | None:
    """Say what to do instead of one of Megatron's flags; None where it is none that is known."""
    return next((answer for pattern, answer in _PATTERNS if fnmatchcase(flag, pattern)), None)
