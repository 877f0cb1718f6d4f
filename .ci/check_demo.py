"""Check what examples/pretrain_starcoder.sh left in a run's folder: it learned, and its export works.

python .ci/check_demo.py runs/starcoder-tiny
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

SMALLEST_DROP = 2.5  # nats, of every validation set
SENTINELS = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]


def main() -> None:
    """Exit with a message at the first thing that is not as it should be."""
    run = Path(sys.argv[1])
    losses: dict[str, list[float]] = {}
    for line in (run / "checkpoints" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "validation" in record:
            losses.setdefault(record["validation"], []).append(record["lm_loss"])
    languages = {name.removesuffix("+fim") for name in losses}
    if len(languages) < 2 or len(losses) != 2 * len(languages):
        sys.exit(
            f"validated on {sorted(losses)}; two languages were expected, without FIM and with it"
        )
    for name, values in losses.items():
        drop = values[0] - values[-1]
        if drop < SMALLEST_DROP:
            sys.exit(f"{name}: loss fell by {drop:.2f} nats, expected {SMALLEST_DROP}")
        print(f"{name}: loss {values[0]:.2f} -> {values[-1]:.2f}")

    corpus = sum(path.stat().st_size for path in (run / "corpus").iterdir())
    if corpus < 20e6:
        sys.exit(f"the corpus has {corpus / 1e6:.1f} MB; 20 were expected")
    if not (run / "loss.png").read_bytes().startswith(b"\x89PNG"):
        sys.exit("loss.png is no PNG")

    tokenizer = AutoTokenizer.from_pretrained(run / "huggingface")
    model = AutoModelForCausalLM.from_pretrained(run / "huggingface")
    if type(model).__name__ != "GPTBigCodeForCausalLM" or not model.config.multi_query:
        sys.exit(f"the export is a {type(model).__name__}")
    if tokenizer.convert_tokens_to_ids(SENTINELS) != [0, 1, 2, 3, 4]:
        sys.exit("the sentinels of the exported tokenizer are not ids 0 to 4")
    print(f"export: {model.num_parameters():,} parameters, vocabulary {len(tokenizer):,}")


if __name__ == "__main__":
    main()
