"""Many requests through one model: each enters and leaves at any step, and no text depends on its company.

A step reads one chunk of prompts, if any wait, and then adds a token to every sequence whose prompt has been read. So a
long prompt does not hold up those that are being written, and a request costs no row of the cache before its turn or
after its end. Clients take turns at rows that are free. Samples of one prompt read it once. Rows of the cache: first the
sequences being written, then those whose prompts are being read.

Every process of a layout makes the same calls with the same requests: all that is decided here follows from them and
from the tokens, which one process chooses and tells the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron.errors import ConfigError
from megatron.inference.chooser import Chooser
from megatron.inference.request import Completion, FinishReason, Request, TokenScore, Update
from megatron.inference.runner import Runner
from megatron.inference.sampling import Draw, sample_key
from megatron.inference.text_stream import TextStream
from megatron.inference.waiting_line import WaitingLine
from megatron.tokenizer.interface import Tokenizer

PREFILL_TOKENS = 512  # of prompts in one step, with what fills shorter ones up


@dataclass
class _Sequence:
    """One sample of a request, in work."""

    request: Request
    sample: int
    text: TextStream
    key: int  # of its draws
    num_cached: int = 0  # tokens in its row
    ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: tuple[TokenScore, ...] = ()
    seen: Tensor | None = None  # bool [v], for a repetition penalty, where tokens are chosen
    pieces: list[str] = field(default_factory=list)  # of its text, given out

    def give(self, text: str) -> str:
        """Note that text is given out."""
        if text:
            self.pieces.append(text)
        return text


class Engine:
    """Requests in work. Not for several threads at once."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, *, prefill_tokens: int = PREFILL_TOKENS
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._chooser = Chooser(runner, tokenizer.vocab_size)
        self._prefill_tokens = prefill_tokens
        self._max_rows = runner.cache.shape.max_rows
        self._num_positions = runner.cache.shape.max_positions
        self._waiting = WaitingLine[_Sequence](lambda one: one.request.client)
        self._written: list[_Sequence] = []  # by row
        self._read: list[_Sequence] = []  # in the rows after those
        self._num_read = 0  # tokens of each prompt
        self._names: dict[str, int] = {}  # requests in work, and how many samples are
        self._after_prompt: dict[str, Tensor | None] = {}  # logits, while samples of a request wait
        self._begun: list[str] = []

    @property
    def is_idle(self) -> bool:
        """Whether all requests are finished."""
        return not (self._waiting or self._read or self._written)

    @property
    def num_waiting(self) -> int:
        """Samples that have no row yet."""
        return len(self._waiting)

    @property
    def num_rows_in_use(self) -> int:
        """Samples that are being written or whose prompts are being read."""
        return len(self._written) + len(self._read)

    def take_begun(self) -> list[str]:
        """Name the requests that got their first row since the last call."""
        begun, self._begun = self._begun, []
        return begun

    def add(self, request: Request) -> None:
        """Take a request. Raises ConfigError for one that cannot be served; others go on."""
        request.check(self._tokenizer.vocab_size, self._num_positions)
        if request.name in self._names:
            raise ConfigError(f"request {request.name} is in work already; give another name")
        self._names[request.name] = request.num_samples
        for sample in range(request.num_samples):
            key = sample_key(request.options.seed, request.prompt, sample)
            stream = TextStream(request.options.stop)
            self._waiting.append(_Sequence(request, sample, stream, key))

    def cancel(self, name: str) -> list[Update]:
        """End a request, if it is in work; gives what its samples have. Every process calls it at the same step."""
        ended = self._waiting.remove(lambda one: one.request.name == name)
        for row in reversed(range(len(self._written))):
            if self._written[row].request.name == name:
                ended.append(self._release(row))
        if any(one.request.name == name for one in self._read):
            # their rows are the last ones: prompts of others among them are read again
            ended += [one for one in self._read if one.request.name == name]
            self._waiting.put_back([one for one in self._read if one.request.name != name])
            self._read = []
        self._forget_prompts()
        return [self._finish(one, "cancelled") for one in ended]

    def step(self) -> list[Update]:
        """Do the next piece of work and say what was added. Collective over all processes."""
        return [*self._read_prompts(), *self._write_tokens()]

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Serve requests to their ends: completions in the order of requests and samples. Collective."""
        names: list[str] = []
        for request in requests:
            self.add(request)
            names.append(request.name)
        done: dict[tuple[str, int], Completion] = {}
        while not self.is_idle:
            for update in self.step():
                if update.completion is not None:
                    done[update.request, update.sample] = update.completion
        order = {name: place for place, name in enumerate(names)}
        keys = sorted((key for key in done if key[0] in order), key=lambda k: (order[k[0]], k[1]))
        return [done[key] for key in keys]

    def _read_prompts(self) -> list[Update]:
        """Read the next chunk of the prompts whose turn it is."""
        updates = [] if self._read else self._admit()
        if not self._read:
            return updates
        sequences, start = self._read, self._num_read
        prompts = [one.request.prompt for one in sequences]
        longest = max(map(len, prompts))
        stop = min(longest, start + max(self._prefill_tokens // len(prompts), 1))
        assert stop == longest or len(prompts) == 1  # what does not fit into one chunk is alone
        is_scored = sequences[0].request.options.prompt_logprobs
        logits = self._runner.prefill(
            [prompt[start:stop] for prompt in prompts],
            len(self._written),
            start,
            "all" if is_scored else "last" if stop == longest else "none",
        )
        self._num_read = stop
        if is_scored:
            sequences[0].prompt_scores += self._chooser.score_prompt(
                logits, prompts[0][start + 1 : stop + 1], sequences[0].request.options
            )
            logits = None if logits is None else logits[-1:]
        return updates if stop < longest else updates + self._end_prompts(logits)

    def _admit(self) -> list[Update]:
        """Give rows to those that wait: at once, if a sample of the same prompt is being written, or to read it."""
        updates: list[Update] = []
        longest = self._num_read = 0
        while self._waiting and len(self._written) + len(self._read) < self._max_rows:
            first = self._waiting.first
            name, size = first.request.name, len(first.request.prompt)
            source = self._row_of(name)
            if source is not None and not self._read:
                start = len(self._written)
                num_followers = self._take_followers(source)
                updates += self._accept(start, _repeated(self._after_prompt[name], num_followers))
                self._forget_prompts()
                continue
            if source is not None or any(one.request.name == name for one in self._read):
                break  # they follow when the prompt has been read
            longest = max(longest, size)
            is_alone = first.request.options.prompt_logprobs or size > self._prefill_tokens
            if self._read and (is_alone or longest * (len(self._read) + 1) > self._prefill_tokens):
                break
            self._read.append(self._waiting.pop())
            self._begun.append(name)
            if is_alone:
                break
        return updates

    def _row_of(self, name: str) -> int | None:
        """Find a row that starts with the prompt of a request, samples of which wait."""
        if name not in self._after_prompt:
            return None
        rows = (row for row, one in enumerate(self._written) if one.request.name == name)
        return next(rows, None)

    def _take_followers(self, source: int) -> int:
        """Start the samples that wait first and have the prompt of a row, behind the rows in use; give their number."""
        assert not self._read
        leader, num_before = self._written[source], len(self._written)
        size = len(leader.request.prompt)
        while (
            self._waiting
            and self._waiting.first.request is leader.request
            and len(self._written) < self._max_rows
        ):
            self._runner.cache.reserve(len(self._written) + 1, size)
            self._runner.cache.copy_row(source, len(self._written), size)
            sequence = self._waiting.pop()
            sequence.prompt_scores = leader.prompt_scores
            self._start_writing(sequence)
        return len(self._written) - num_before

    def _end_prompts(self, logits: Tensor | None) -> list[Update]:
        """Choose the first tokens of the sequences whose prompts have been read, by logits [r, v]."""
        first = len(self._written)
        sequences, self._read = self._read, []
        for sequence in sequences:
            self._start_writing(sequence)
        num_followers = self._take_followers(len(self._written) - 1)
        for row, sequence in enumerate(sequences):
            after = None if logits is None else logits[row : row + 1]
            self._after_prompt[sequence.request.name] = after
        self._forget_prompts()
        if logits is not None and num_followers:
            logits = torch.cat([logits, logits[-1:].expand(num_followers, -1)])
        return self._accept(first, logits)

    def _forget_prompts(self) -> None:
        waiting = {one.request.name for one in self._waiting}
        self._after_prompt = {k: v for k, v in self._after_prompt.items() if k in waiting}

    def _start_writing(self, sequence: _Sequence) -> None:
        """Give a sequence the next row, in which its prompt lies."""
        sequence.num_cached = len(sequence.request.prompt)
        sequence.seen = self._chooser.seen(sequence.request)
        self._written.append(sequence)

    def _write_tokens(self) -> list[Update]:
        """Add a token to every sequence that is being written."""
        sequences = self._written
        if not sequences:
            return []
        logits = self._runner.decode(
            [one.ids[-1] for one in sequences],
            [one.num_cached for one in sequences],
            len(sequences) + len(self._read),
        )
        for sequence in sequences:
            sequence.num_cached += 1
        return self._accept(0, logits)

    def _accept(self, first: int, logits: Tensor | None) -> list[Update]:
        """Choose the next token of the rows from first on by logits [r, v], and let those go that are finished."""
        sequences = self._written[first:]
        draws = [Draw(one.request.options, one.key, len(one.ids), one.seen) for one in sequences]
        updates, finished = [], []
        for row, choice in enumerate(self._chooser.choose(logits, draws), start=first):
            sequence = self._written[row]
            reason = self._take(sequence, choice)
            if reason is None:
                text = sequence.give(sequence.text.take())
                name, number = sequence.request.name, sequence.sample
                updates.append(Update(name, number, text, choice.token, score=choice))
            else:
                finished.append(row)
                updates.append(self._finish(sequence, reason, choice))
        for row in reversed(finished):
            self._release(row)
        return updates

    def _take(self, sequence: _Sequence, choice: TokenScore) -> FinishReason | None:
        """Add a token to a sequence; give why it ends with it, None if it does not."""
        options, token = sequence.request.options, choice.token
        sequence.ids.append(token)
        if options.logprobs is not None:
            sequence.scores.append(choice)
        if sequence.seen is not None:
            sequence.seen[token] = True
        is_end = token == self._tokenizer.eod or token in sequence.request.end_ids
        if is_end and not options.ignore_eod:
            return "end_of_text"
        if sequence.text.add(self._tokenizer.token_bytes(token)):
            return "stop"
        return "length" if len(sequence.ids) == options.max_new_tokens else None

    def _finish(
        self, sequence: _Sequence, reason: FinishReason, last: TokenScore | None = None
    ) -> Update:
        """Make the completion of a sequence, which has no row any more or will lose it."""
        request = sequence.request
        self._names[request.name] -= 1
        if not self._names[request.name]:
            del self._names[request.name]
        rest = sequence.give(sequence.text.finish())
        completion = Completion(
            request.name,
            sequence.sample,
            "".join(sequence.pieces),
            tuple(sequence.ids),
            reason,
            len(request.prompt),
            tuple(sequence.scores),
            sequence.prompt_scores,
        )
        token = sequence.ids[-1] if sequence.ids else None
        return Update(request.name, sequence.sample, rest, token, completion, last)

    def _release(self, row: int) -> _Sequence:
        """Free a row by moving the last one there, and the prompts being read one down."""
        cache, last = self._runner.cache, len(self._written) - 1
        released, moved = self._written[row], self._written.pop()
        if row != last:
            self._written[row] = moved
            cache.copy_row(last, row, moved.num_cached)
        for place in range(last, last + len(self._read)):
            cache.copy_row(place + 1, place, self._num_read)
        return released


def _repeated(logits: Tensor | None, num_rows: int) -> Tensor | None:
    return None if logits is None else logits.expand(num_rows, -1)
