"""Show what an exported model writes: one completion and one infilling, through transformers. See --help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron import cli
from megatron.errors import ConfigError, DataError

EXAMPLES = """\
  the built-in prompts:
    python tools/sample_hf.py --model runs/a/huggingface
  your own, for a model trained with FIM; [HERE] is what it fills in:
    python tools/sample_hf.py --model runs/a/huggingface --prompt 'def main(' \\
      --infill 'def area(width, height):
    return [HERE]
  '

The folder of tools/convert_to_hf.py is all it needs; what the model wrote is shown between >>> and <<<"""

PROMPT = "import os\nimport sys\n\n\ndef main(args):\n"
INFILL = (
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n"
    "    def push(self, item):\n        [HERE]\n\n"
    "    def pop(self):\n        return self.items.pop()\n"
)
HOLE = "[HERE]"
SENTINELS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


def load(folder: Path) -> tuple[Any, Any]:
    """Load model and tokenizer from a local folder; DataError if it is none."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise DataError("sample_hf.py needs transformers: pip install transformers") from None
    if not (folder / "config.json").is_file():
        raise DataError(f"--model {folder} holds no config.json; give a folder of convert_to_hf.py")
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"--model {folder} does not load: {str(error).splitlines()[0]}") from None
    return model.eval(), tokenizer


def infilling_ids(tokenizer: Any, text: str) -> list[int]:
    """Give the ids that ask for the middle of text: prefix, suffix, then the model's turn (PSM)."""
    missing = [name for name in SENTINELS if name not in tokenizer.get_vocab()]
    if missing:
        raise DataError(
            f"the tokenizer has no {missing[0]}: a model trained without FIM cannot infill"
        )
    prefix, suffix, middle = tokenizer.convert_tokens_to_ids(list(SENTINELS))
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in text.split(HOLE))
    return [prefix, *before, suffix, *after, middle]


def generate(model: Any, tokenizer: Any, ids: list[int], args: argparse.Namespace) -> str:
    """Continue ids until end of text or max_new_tokens; sampled, the same for the same seed."""
    import torch

    torch.manual_seed(args.seed)
    num_positions = model.config.max_position_embeddings
    room = num_positions - args.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"--max-new-tokens is {args.max_new_tokens} and the model has {num_positions} positions, the prompt's "
            f"included; give {num_positions - 1} at most"
        )
    if len(ids) > room:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens and the model room for {room} before "
            f"--max-new-tokens {args.max_new_tokens}; shorten one of them"
        )
    is_greedy = args.temperature == 0
    choice = {} if is_greedy else {"temperature": args.temperature, "top_p": 0.95}
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=args.max_new_tokens,
        do_sample=not is_greedy,
        pad_token_id=tokenizer.eos_token_id,
        **choice,
    )
    return tokenizer.decode(
        output[0, len(ids) :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def main(argv: Sequence[str] | None = None) -> int | None:
    """Load, generate twice, print."""
    parser = cli.make_parser(
        "Show one completion and one infilling of an exported model.", EXAMPLES
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported folder")
    parser.add_argument("--prompt", default=PROMPT, help="text to continue")
    parser.add_argument("--infill", default=INFILL, help=f"text with one {HOLE}")
    parser.add_argument(
        "--max-new-tokens", type=int, default=48, help="most to write (default: 48)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.4, help="0 takes the likeliest (default: 0.4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    args = cli.parse_known(parser, argv)
    if args.infill.count(HOLE) != 1:
        raise ConfigError(f"--infill holds {args.infill.count(HOLE)} times {HOLE}; write it once")
    if not args.prompt:
        raise ConfigError("--prompt is empty; give text to continue, or leave it out")
    if args.max_new_tokens < 1 or args.temperature < 0:
        raise ConfigError("--max-new-tokens starts at 1 and --temperature at 0")

    model, tokenizer = load(args.model)
    completion = generate(
        model, tokenizer, tokenizer.encode(args.prompt, add_special_tokens=False), args
    )
    print(f"--- completion\n{args.prompt}>>>{completion}<<<")
    middle = generate(model, tokenizer, infilling_ids(tokenizer, args.infill), args)
    print(f"--- infilling\n{args.infill.replace(HOLE, f'>>>{middle}<<<')}")
    return None


if __name__ == "__main__":
    cli.run_tool(main)
