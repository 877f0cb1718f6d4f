"""Texts made to break an encoder, and the comparison of ours with the `tokenizers` package on them.

    python -m tests.tokenizer.fuzz_byte_pair --cases 1000000

compares that many texts under every pre-tokenizer and ends with code 1 and the first text whose ids differ.
"""

import argparse
import copy
import inspect
import json
import random
import sys
import tokenize
import unicodedata
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from megatron.tokenizer.byte_pair import CL100K, GPT2, make_encoder
from megatron.tokenizer.json_tokenizer import token_bytes_of

DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(expression), "isolated")


PRE_TOKENIZERS = {
    "StarCoder": pre_tokenizers.Sequence([DIGITS, BYTE_LEVEL]),
    "GPT-2": BYTE_LEVEL,
    "GPT-2 as a split": pre_tokenizers.Sequence([_split(GPT2), BYTES_ONLY]),
    "Llama 3": pre_tokenizers.Sequence(
        [_split(CL100K.replace("NUMBERS", r"\p{N}{1,3}")), BYTES_ONLY]
    ),
    "Qwen 2's expression": pre_tokenizers.Sequence(
        [_split(CL100K.replace("NUMBERS", r"\p{N}")), BYTES_ONLY]
    ),
    "digits, then cl100k": pre_tokenizers.Sequence(
        [DIGITS, _split(CL100K.replace("NUMBERS", r"\p{N}{1,3}")), BYTES_ONLY]
    ),
}
CODE = inspect.getsource(tokenize)
ATOMS = [
    *" \t\n\r\v\f_.,;:()[]{}<>=+-*/\\|&^%$#@!?~`\"'\0\x1b\x7f",
    *["\r\n", "\n\n", "  ", "    ", "\t\t", " \n", "\n ", " \t", "\u0085", "\u00a0", "\u2028", "\u3000", "\u200b"],
    *["'s", "'S", "'t", "'re", "'RE", "'Ve", "'ll", "'lL", "'m", "'d", "'\u017f", "\u2019s", "''", "'x", " 's"],
    *"0123456789",
    *["\u0661", "\u00b2", "\u00bd", "\u2167", "\u0e51", "\U0001d7d8", "\u4e09", "\U00011de0", "\u3007", "12345"],
    *["e\u0301", "\u0301", "\u200d", "\U0001f468\u200d\U0001f469", "\U0001f600", "\ufb01", "\u00df", "\u0130"],
    *["\u6f22\u5b57", "\u3072\u3089", "\u0440\u0443\u0441", "\u0639\u0631", "\u05e2\u05d1", "\u0928\u093f", "\uac00"],
    *["a", "B", "def", "return", "self", "camelCase", "x" * 20, "if(", "->", "!=", "http://", "#include"],
]  # fmt: skip
FILES = ("*.py", "*.h", "*.hpp", "*.js", "*.json", "*.md", "*.txt", "*.sh", "*.c", "*.go", "*.html")


def texts(seed: int, count: int, files: list[str] | None = None) -> list[str]:
    """Make texts of all kinds; with files, some are cut out of those."""
    rng = random.Random(seed)
    sources = files or [CODE]
    return [_KINDS[number % len(_KINDS)](rng, sources) for number in range(count)]


def _random_bytes(rng: random.Random, sources: list[str]) -> str:
    return rng.randbytes(rng.randint(0, 60)).decode("utf-8", "replace")


def _any_characters(rng: random.Random, sources: list[str]) -> str:
    plane = rng.choice([0, 0, 0, 1, 1, 2, 3, 14, 15, 16]) << 16
    codes = (plane + rng.randrange(0x10000) for _ in range(rng.randint(1, 30)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def _atoms(rng: random.Random, sources: list[str]) -> str:
    return "".join(rng.choices(ATOMS, k=rng.randint(1, 30)))


def _ascii(rng: random.Random, sources: list[str]) -> str:
    """Long enough that it is cut a block at a time, with now and then a character that ends a block."""
    kinds = [
        "abcXYZ_",
        "0123456789",
        " ",
        "    \t\n\r",
        "+-*/=(){}[];,.:<>",
        "'\"'",
        "'s't'll're'd",
        "\x00\x1c\x7f",
    ]
    weights = [rng.choice([0, 1, 5, 20]) for _ in kinds] + [rng.choice([0, 0, 0, 1])]
    weights[0] += 1
    alphabets = [*kinds, "\u00e9\u3000\u0661\u4e09"]
    chosen = rng.choices(alphabets, weights, k=rng.randint(50, 300))
    return "".join(rng.choice(alphabet) * rng.choice([1, 1, 1, 2, 9]) for alphabet in chosen)


def _runs(rng: random.Random, sources: list[str]) -> str:
    longest = rng.choice([3, 20, 20, 20, 300])
    return "".join(rng.choice(ATOMS) * rng.randint(1, longest) for _ in range(rng.randint(1, 4)))


def _code(rng: random.Random, sources: list[str]) -> str:
    source = rng.choice(sources)
    start = rng.randrange(len(source) + 1)
    return source[start : start + rng.randint(1, 200)]


def _damaged_code(rng: random.Random, sources: list[str]) -> str:
    text = _code(rng, sources)
    cut = rng.randint(0, len(text))
    return text[:cut] + rng.choice([_atoms, _any_characters])(rng, sources) + text[cut:]


_KINDS = (_random_bytes, _any_characters, _atoms, _ascii, _runs, _code, _damaged_code)


def make_definition(pre_tokenizer: pre_tokenizers.PreTokenizer, *, vocab_size: int = 3000) -> dict:
    """Train on such texts, so that merges reach across what they are made of."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(-1, 4000), trainer)
    return json.loads(tokenizer.to_str())


class Comparison:
    """Our encoder and the package's, of one definition."""

    def __init__(self, definition: dict, *, ignore_merges: bool = False) -> None:
        definition = copy.deepcopy(definition)
        definition["model"]["ignore_merges"] = ignore_merges
        self.theirs = tokenizers.Tokenizer.from_str(json.dumps(definition))
        self.ours = make_encoder(definition, token_bytes_of(definition))

    def first_difference(self, batch: list[str]) -> str | None:
        """Give the first text whose ids differ, or None."""
        expected = [encoding.ids for encoding in self.theirs.encode_batch_fast(batch)]
        ids, sizes = self.ours.encode_batch(batch)
        parts = np.split(ids, np.cumsum(sizes)[:-1])
        for text, theirs, ours in zip(batch, expected, parts, strict=True):
            if ours.tolist() != theirs:
                return text
        return None


def comparisons() -> dict[str, Comparison]:
    """Make one for each pre-tokenizer, and one whose vocabulary counts before its merges."""
    definitions = {name: make_definition(made) for name, made in PRE_TOKENIZERS.items()}
    made = {name: Comparison(definition) for name, definition in definitions.items()}
    # Merging arrives at every token of a trained vocabulary; at those added here it does not.
    changed = definitions["Llama 3"]
    vocab = changed["model"]["vocab"]
    for token in ("zqxj", "\u0120zqxj", "qqq", "selfself" * 4):
        vocab.setdefault(token, len(vocab))
    made["ignore_merges"] = Comparison(changed, ignore_merges=True)
    made["merges that are never ignored"] = Comparison(changed)
    return made


def _real_files(limit: int) -> list[str]:
    roots = [Path(folder) for folder in sys.path if folder.endswith(("site-packages", "packages"))]
    roots += [Path(tokenize.__file__).parent, Path("/usr/include"), Path("/usr/share")]
    found: list[str] = []
    for pattern in FILES:
        paths = [path for root in roots if root.is_dir() for path in root.rglob(pattern)]
        random.Random(0).shuffle(paths)
        found += [_read(path) for path in paths[:limit]]
    return [text for text in found if text]


def _read(path: Path) -> str:
    try:
        return path.read_bytes()[:100_000].decode("utf-8", "replace")
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    files = _real_files(200)
    each = comparisons()
    step = 5000
    for start in range(0, args.cases, step):
        batch = texts(args.seed + start, min(step, args.cases - start), files)
        for name, comparison in each.items():
            text = comparison.first_difference(batch)
            if text is not None:
                names = [unicodedata.name(char, "?") for char in text[:20]]
                sys.exit(f"{name}: ids differ on {text!r}\n{names}")
    print(
        f"{args.cases:,} texts, {len(files):,} files among their sources, seed {args.seed}: ids equal under "
        f"{len(each)} definitions: {', '.join(each)} (tokenizers {tokenizers.__version__})"
    )


if __name__ == "__main__":
    main()
