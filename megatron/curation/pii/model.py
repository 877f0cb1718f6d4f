"""Personal data that a model finds: a classifier of tokens from a folder of Hugging Face (StarCoder §4, StarPII).

Long texts are read in windows that overlap, and of a token counts the window that shows most on both of its sides.
Windows of many texts make a batch. Knows nothing of what is replaced.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from megatron.curation.pii.keys import DUMMY
from megatron.curation.pii.randomness import is_gibberish, measured
from megatron.curation.pii.rules import EXAMPLE_DOMAIN, is_public
from megatron.curation.pii.scan import Found
from megatron.curation.pii.spans import LABELS, Span, label_columns, spans_of
from megatron.errors import ConfigError, DataError

MIN_LENGTH = 4  # StarCoder §4: shorter values are none
MIN_KEY = 9
ROUND = 64  # windows are padded to a multiple of it, so that a batch has few sizes
PLACEHOLDER = re.compile(
    r"<(?:NAME|USERNAME|EMAIL|KEY|PASSWORD)(?:_\d+)?>|(?<![^\W_])(?:NAME|USERNAME)(?:_\d+)?(?![^\W_])"
)
SIDES = " \t\r\n\"'`"
SIDES_OF_NAMES = SIDES + ",;:.()[]{}<>*#-/|"


@dataclass(frozen=True)
class Window:
    """A part of a text's tokens that the model reads, and those of them that it answers for."""

    text: int
    begin: int
    end: int
    first: int
    last: int


def windows_of(text: int, num_tokens: int, size: int, overlap: int) -> Iterator[Window]:
    """Cut a text of so many tokens into windows of at most `size` that overlap; each token has one that answers."""
    begin = 0
    while begin < num_tokens:
        end = min(begin + size, num_tokens)
        first = begin + overlap // 2 if begin else 0
        last = end if end == num_tokens else end - (overlap - overlap // 2)
        yield Window(text, begin, end, first, last)
        if end == num_tokens:
            return
        begin = end - overlap


class Tokens:
    """A tokenizer of a folder: ids with the characters they stand for, and what stands at the ends of a window."""

    def __init__(self, tokenizer: Any, folder: Path | str) -> None:
        """Take a fast tokenizer of transformers; DataError if it is another."""
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{folder} has no tokenizer.json, which says what characters a token stands for; "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes one for most tokenizers"
            )
        self.whole = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.before = _first_there(tokenizer.cls_token_id, tokenizer.bos_token_id)
        self.after = _first_there(tokenizer.sep_token_id, tokenizer.eos_token_id)
        self.pad = [*_first_there(tokenizer.pad_token_id), *self.after, *self.before, 0][0]

    def encode(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Give ids [tokens] and offsets [tokens, 2] in characters, without those of the ends."""
        found = self._backend.encode(
            text.encode("utf-8", "replace").decode(), add_special_tokens=False
        )
        return np.array(found.ids, np.int64), np.array(found.offsets, np.int64).reshape(-1, 2)


def _first_there(*ids: int | None) -> list[int]:
    return [one for one in ids if one is not None][:1]


class Classifier:
    """A model and its tokenizer on a device."""

    def __init__(
        self,
        model: Any,
        tokens: Tokens,
        *,
        window: int,
        overlap: int,
        batch_size: int,
        bf16: bool = False,
    ) -> None:
        self.model = model
        self.tokens = tokens
        names = model.config.id2label
        self.columns = label_columns([str(names[number]) for number in range(len(names))])
        self._size = window - len(tokens.before) - len(tokens.after)
        self._overlap = min(overlap, self._size // 2)
        self._batch_size = batch_size
        self._bf16 = bf16

    def spans(self, texts: Sequence[str], threshold: float) -> list[list[Span]]:
        """Give the spans of each text."""
        encoded = [self.tokens.encode(text) for text in texts]
        windows = [
            window
            for number, (ids, _) in enumerate(encoded)
            for window in windows_of(number, len(ids), self._size, self._overlap)
        ]
        # alike in length, little is padded
        windows.sort(key=lambda window: window.end - window.begin)
        num_classes = self.model.config.num_labels
        answers = [np.zeros((len(ids), num_classes), np.float32) for ids, _ in encoded]
        for place in range(0, len(windows), self._batch_size):
            batch = windows[place : place + self._batch_size]
            rows = self._classify([encoded[one.text][0][one.begin : one.end] for one in batch])
            for window, row in zip(batch, rows, strict=True):
                begin = len(self.tokens.before) - window.begin
                answers[window.text][window.first : window.last] = row[
                    begin + window.first : begin + window.last
                ]
        return [
            spans_of(text, offsets, answer, self.columns, threshold)
            for text, (_, offsets), answer in zip(texts, encoded, answers, strict=True)
        ]

    def _classify(self, parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """Give probabilities [parts, tokens, classes] of windows, ends and padding included. Waits for the device."""
        import torch

        ids, mask = pad(parts, self.tokens, self._size)
        device = next(self.model.parameters()).device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self._bf16),
        ):
            logits = self.model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
            ).logits
        answer: npt.NDArray[np.float32] = logits.float().softmax(-1).cpu().numpy()
        return answer


def pad(
    parts: Sequence[npt.NDArray[np.int64]], tokens: Tokens, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give ids and mask [parts, tokens] of windows with their ends, padded to one length that few batches do not share."""
    ends = len(tokens.before) + len(tokens.after)
    longest = max(map(len, parts))
    length = min(-(-longest // ROUND) * ROUND, size) + ends
    ids = np.full((len(parts), length), tokens.pad, np.int64)
    mask = np.zeros_like(ids)
    for row, part in enumerate(parts):
        whole = [*tokens.before, *part, *tokens.after]
        ids[row, : len(whole)] = whole
        mask[row, : len(whole)] = 1
    return ids, mask


def max_window(config: Any, tokenizer: Any) -> int:
    """Give the longest window that a model reads, ends included."""
    positions = getattr(config, "max_position_embeddings", None) or 1 << 30
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # they count positions from behind the padding's
    return int(min(positions, tokenizer.model_max_length))


def check_folder(folder: Path) -> None:
    """Raise DataError or ConfigError if a folder holds no classifier of personal data. Loads no library."""
    try:
        config = orjson.loads((folder / "config.json").read_bytes())
        tags = [str(tag) for tag in config["id2label"].values()]
    except OSError as error:
        raise DataError(
            f"--model {folder}: config.json: {error.strerror}; give a local folder of Hugging Face, nothing is downloaded"
        ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"--model {folder}: config.json names no labels (id2label) of tokens; `curate.py pii-train` makes such a model"
        ) from None
    if not set(label_columns(tags)) & set(LABELS):
        raise ConfigError(
            f"--model {folder} tells {', '.join(tags[:6])}, none of {', '.join(LABELS)}; it finds no personal data"
        )


def fingerprint(folder: Path) -> str:
    """Hash what a model's answers depend on: its configuration, weights and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model") and path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def load(
    folder: Path,
    *,
    device: Literal["auto", "cpu", "cuda"],
    window: int,
    overlap: int,
    batch_size: int,
    bf16: bool,
) -> Classifier:
    """Load a model to a device; in a worker, to the GPU of its number, and with one thread on a CPU."""
    torch, transformers = libraries()
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; leave it out, or give cpu")
    place = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    worker = multiprocessing.current_process()._identity
    if place == "cuda":
        place = f"cuda:{(worker[-1] - 1 if worker else 0) % torch.cuda.device_count()}"
    elif worker:
        torch.set_num_threads(1)  # a core each: more workers, not more threads
    try:
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"--model {folder} cannot be loaded: {error}") from error
    longest = max_window(model.config, tokenizer)
    tokens = Tokens(tokenizer, folder)
    return Classifier(
        model.to(place).eval(),
        tokens,
        window=min(window, longest),
        overlap=overlap,
        batch_size=batch_size,
        bf16=bf16,
    )


def libraries() -> tuple[Any, Any]:
    """Import torch and transformers; ConfigError says how to get what is missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"a model needs {error.name}, which is not installed: pip install torch transformers"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


class ModelFinder:
    """Finds what a model finds and the paper's rules let pass. Loads the model when it is first asked."""

    def __init__(self, folder: Path, threshold: float, **how: Any) -> None:
        """how: device, window, overlap, batch_size, bf16 of `load`."""
        self._threshold = threshold
        self._load = functools.partial(load, folder, **how)

    @functools.cached_property
    def classifier(self) -> Classifier:
        """Give the model. After the fork of the workers: a GPU that was used before cannot be used in them."""
        return self._load()

    def find(self, texts: Sequence[str]) -> list[list[Found]]:
        """Give the finds of each text."""
        spans = self.classifier.spans(texts, self._threshold)
        return [
            [item for item in (accepted(text, span) for span in one) if item is not None]
            for text, one in zip(texts, spans, strict=True)
        ]


def accepted(text: str, span: Span) -> Found | None:
    """Apply StarCoder's rules behind the model (§4): what is too short, no whole name, no public address is left."""
    begin, end, label = span
    sides = SIDES_OF_NAMES if label in ("NAME", "USERNAME", "EMAIL", "IP_ADDRESS") else SIDES
    value = text[begin:end].lstrip(sides)
    begin = end - len(value)
    value = value.rstrip(sides)
    end = begin + len(value)
    if len(value) < MIN_LENGTH or label not in LABELS or is_placeholder(text, begin, end):
        return None
    is_right = {
        "NAME": lambda: len(value.split()) > 1,
        "USERNAME": lambda: True,
        "EMAIL": lambda: is_address(value),
        "IP_ADDRESS": lambda: is_public(value),
        "KEY": lambda: len(value) >= MIN_KEY and is_gibberish(measured(value)),
        "PASSWORD": lambda: value.lower() not in DUMMY,
    }
    return Found(begin, end, label, "model") if is_right[label]() else None


def is_address(value: str) -> bool:
    """Tell what may be somebody's mail address: one `@`, and no domain for examples behind it."""
    name, sign, domain = value.partition("@")
    return bool(
        name and sign and "." in domain and name != "git" and not EXAMPLE_DOMAIN.search(domain)
    )


def is_placeholder(text: str, begin: int, end: int) -> bool:
    """Tell what touches a replacement of ours: it is no personal data."""
    near = max(begin - 16, 0)
    return any(
        match.start() < end and match.end() > begin
        for match in PLACEHOLDER.finditer(text, near, end + 16)
    )
