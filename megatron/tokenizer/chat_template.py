"""How a conversation becomes ids: what stands around each message, and what ends an answer.

A template is four texts. Sentinels that it spells are ids; a message never becomes one, whatever it spells.

    system, user, assistant   text with {content} once, which the message takes the place of
    end                       the sentinel that ends an answer; in `assistant` it follows {content}

Text between two sentinels is encoded as a whole, as a tokenizer of transformers reads the prompt of a tuned model,
with one exception: an answer is encoded by itself, since a prompt ends where it begins. Knows nothing of files of data.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.errors import ConfigError, DataError
from megatron.tokenizer.interface import Tokenizer

FILE = "chat_template.json"  # beside the tokenizer of a run
CONTENT = "{content}"
ROLES = ("system", "user", "assistant")
NAMES = ("starchat", "plain")

# One list a context or an answer: text to be encoded, and ids of sentinels.
Pieces = list[str | int]


@dataclass(frozen=True)
class Message:
    """One turn. learns: of an assistant's, whether it carries loss."""

    role: str
    content: str
    learns: bool = True


@dataclass(frozen=True)
class ChatTemplate:
    """What stands around messages."""

    system: str
    user: str
    assistant: str
    end: str

    @classmethod
    def from_json(cls, values: Any, where: str) -> ChatTemplate:
        """Read the four texts. Raises DataError, which says where, for anything else."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise DataError(f"{where} is no chat template; it has the texts {', '.join(names)}")
        for name, text in values.items():
            if not isinstance(text, str) or (name in ROLES and text.count(CONTENT) != 1):
                raise DataError(f"{where}: {name} is {text!r}; give a text with {CONTENT} once")
        template = cls(**values)
        before, after = template.around("assistant")
        if not before or not template.end or not after.startswith(template.end):
            raise DataError(
                f"{where}: assistant is {template.assistant!r}; something stands before {CONTENT}, and end, "
                f"{template.end!r}, right after it"
            )
        return template

    def to_json(self) -> dict[str, str]:
        """Give the four texts by name."""
        return dataclasses.asdict(self)

    def jinja(self) -> str:
        """Spell the template as transformers' `chat_template` is."""
        cases = []
        for number, role in enumerate(ROLES):
            before, after = map(_jinja_text, self.around(role))
            word = "elif" if number else "if"
            test = f"{{%- {word} message['role'] == '{role}' -%}}"
            cases.append(f"{test}{{{{- {before} + message['content'] + {after} -}}}}")
        prompt = _jinja_text(self.around("assistant")[0])
        return (
            f"{{%- for message in messages -%}}{''.join(cases)}{{%- endif -%}}{{%- endfor -%}}"
            f"{{%- if add_generation_prompt -%}}{{{{- {prompt} -}}}}{{%- endif -%}}"
        )

    def around(self, role: str) -> tuple[str, str]:
        """Give the text before and after the message of a role."""
        before, _, after = str(getattr(self, role)).partition(CONTENT)
        return before, after


class ChatEncoder:
    """Encodes conversations by a template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        """Raises ConfigError for a template whose end is no sentinel of the tokenizer."""
        if template.end not in tokenizer.special_tokens:
            raise ConfigError(
                f"--chat-template ends answers with {template.end!r}, which is no sentinel of the tokenizer "
                f"{tokenizer.name}: it has {' '.join(tokenizer.special_tokens)}; take one of them"
            )
        self.template = template
        self.vocab_size = tokenizer.vocab_size
        self.end = tokenizer.special_tokens[template.end]
        self._tokenizer = tokenizer
        names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._sentinels = re.compile(f"({'|'.join(map(re.escape, names))})")

    def conversation(self, messages: Sequence[Message]) -> list[Pieces]:
        """Lay out context, answer, context, answer, …, where an end-of-document id is the last; a context is first."""
        parts = self._lay_out(messages)
        if parts[-1] or self.end != self._tokenizer.eod:
            parts[-1].append(self._tokenizer.eod)
        return [part for part in parts if part]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Give the ids that ask for the answer to a conversation: those that come before it in training."""
        parts = self._lay_out([dataclasses.replace(message, learns=False) for message in messages])
        self._add(parts[-1], self.template.around("assistant")[0])
        return self.encode(parts)[0].tolist()

    def encode(
        self, parts: Sequence[Pieces]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Give the ids of all parts back to back, and how many each has. One call of the encoder."""
        encoded, sizes = self._tokenizer.encode_batch(
            [piece for part in parts for piece in part if isinstance(piece, str)]
        )
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        arrays: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
        lengths, number = [], 0
        for part in parts:
            length = 0
            for piece in part:
                if isinstance(piece, int):
                    arrays.append(np.array([piece], np.int32))
                else:
                    arrays.append(encoded[bounds[number] : bounds[number + 1]])
                    number += 1
                length += len(arrays[-1])
            lengths.append(length)
        return np.concatenate(arrays), np.array(lengths, np.int64)

    def _lay_out(self, messages: Sequence[Message]) -> list[Pieces]:
        """Give contexts and, at odd places, the answers that carry loss; the last context may be empty."""
        parts: list[Pieces] = [[]]
        for message in messages:
            before, after = self.template.around(message.role)
            self._add(parts[-1], before)
            if message.role != "assistant":
                _add_text(parts[-1], message.content)
                self._add(parts[-1], after)
                continue
            answer: Pieces = [message.content, self.end]
            if message.learns:
                parts += [answer, []]
            else:
                parts[-1] += answer
            self._add(parts[-1], after.removeprefix(self.template.end))
        return parts

    def _add(self, pieces: Pieces, text: str) -> None:
        """Append text of the template, in which sentinels are ids."""
        for number, part in enumerate(self._sentinels.split(text)):
            if number % 2:
                pieces.append(self._tokenizer.special_tokens[part])
            else:
                _add_text(pieces, part)


def choose_template(choice: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """Give the template of that name or file; None: StarChat's where the tokenizer has its sentinels, else plain text.

    Raises ConfigError for a name that the tokenizer cannot serve, DataError for a file that cannot be read.
    """
    missing = [name for name in STARCHAT_SENTINELS if name not in tokenizer.special_tokens]
    if choice == "starchat" and missing:
        raise ConfigError(
            f"--chat-template starchat needs the sentinels {' '.join(STARCHAT_SENTINELS)}, and the tokenizer "
            f"{tokenizer.name} has no {' '.join(missing)}; take plain, or a tokenizer that has them"
        )
    if choice == "starchat" or (choice is None and not missing):
        return STARCHAT
    if choice in (None, "plain"):
        return _plain(tokenizer)
    return read_template(Path(str(choice)), f"--chat-template {choice}")


def read_template(path: Path, where: str) -> ChatTemplate:
    """Read a template from a file of JSON. Raises DataError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{where} cannot be read: {error.strerror}; give {', '.join(NAMES)} or a file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    return ChatTemplate.from_json(values, where)


def why_unusable(value: Any, *, learns: bool = True) -> str | None:
    """Say why a value is no conversation, or with `learns` none to learn from; None if it is one."""
    if not isinstance(value, list) or not value:
        return "no list of messages"
    for message in value:
        if not isinstance(message, Mapping):
            return "a message that is no object"
        if message.get("role") not in ROLES:
            return f"a role that is none of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str):
            return "a message whose content is no text"
        if message.get("weight") not in (None, 0, 1):
            return "a weight that is neither 0 nor 1"
    answers = [m for m in read_messages(value) if m.role == "assistant" and m.learns]
    if learns and not all(answer.content for answer in answers):
        return "an answer that is empty"
    return "no answer to learn from" if learns and not answers else None


def read_messages(value: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Take the messages of a conversation that is usable. A weight of 0 says that an answer is not to be learned."""
    return [Message(m["role"], m["content"], learns=m.get("weight") != 0) for m in value]


def _plain(tokenizer: Tokenizer) -> ChatTemplate:
    """Give a template of plain text, for any tokenizer."""
    eod = tokenizer.eod_token
    return ChatTemplate(
        system="{content}\n\n",
        user="Question:\n{content}\n\n",
        assistant=f"Answer:\n{{content}}{eod}",
        end=eod,
    )


def _add_text(pieces: Pieces, text: str) -> None:
    """Append text, to the text that is last if there is any."""
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] += text
    elif text:
        pieces.append(text)


def _jinja_text(text: str) -> str:
    """Spell a text as Jinja reads it."""
    return json.dumps(text, ensure_ascii=False)


STARCHAT_SENTINELS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
# StarChat's: StarCoder tuned on conversations, with sentinels that were added to its vocabulary.
STARCHAT = ChatTemplate(
    system="<|system|>\n{content}<|end|>\n",
    user="<|user|>\n{content}<|end|>\n",
    assistant="<|assistant|>\n{content}<|end|>\n",
    end="<|end|>",
)
