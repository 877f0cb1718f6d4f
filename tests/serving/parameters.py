"""The names that the body of a request may have."""

OURS = ("top_k", "repetition_penalty", "ignore_eos", "fim_order", "sentinels")
OPENAIS = (
    "model", "prompt", "suffix", "max_tokens", "temperature", "top_p", "n", "best_of", "seed", "stop", "stream",
    "stream_options", "logprobs", "echo", "user", "logit_bias", "presence_penalty", "frequency_penalty",
)  # fmt: skip
