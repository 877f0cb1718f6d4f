"""The page to play with, and what it asks beside completions: where a text stands in the training data, how a run goes.

The page is files of `page/`, as they are: nothing is built, and nothing comes from another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from megatron.attribution.attribution import Attribution
from megatron.attribution.notice import Source
from megatron.attribution.review import MIN_TOKENS
from megatron.errors import DataError
from megatron.serving.completion_call import ServedModel
from megatron.serving.error import RequestError
from megatron.serving.guard import read_body
from megatron.serving.options import ServingOptions
from megatron.tokenizer.special_tokens import FIM_PREFIX
from megatron.training.curves import Curves, read_curves

PAGE = Path(__file__).with_name("page")
MAX_BYTES = 100_000  # of a text that is looked up
MAX_SPANS = 200  # the longest ones: of a text made of lines of many files, all take seconds
MAX_WAITING = 16  # texts to be looked up beside the one that is
LINES_AROUND = 200  # of a source that are shown before and behind a line
MAX_POINTS = 1000  # of a curve
# What the page may load is here: a text that it shows can fetch and run nothing.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Playground:
    """What the page asks for. Its methods may be called from several threads."""

    def __init__(
        self, model: ServedModel, attribution: Attribution | None, metrics: Path | None
    ) -> None:
        """attribution: without it nothing is looked up. metrics: of a run, which may have none yet."""
        self._model = model
        self._attribution = attribution
        self._metrics = metrics
        self._read: tuple[tuple[int, int], dict[str, Any]] | None = None  # size and time of metrics

    def about(self) -> dict[str, Any]:
        """Say what there is."""
        return {
            "model": self._model.name,
            "max_tokens": self._model.num_positions - 1,  # the prompt has one at least
            "infill": FIM_PREFIX in self._model.tokenizer.special_tokens,
            "attribution": self._attribution is not None,
            "training": self._metrics is not None,
        }

    def matches(self, text: str) -> dict[str, Any]:
        """Give the runs of a text that stand in the data, in characters, each with its sources. RequestError if not."""
        attribution = self._need_attribution()
        encoded = text.encode()
        if len(encoded) > MAX_BYTES:
            raise RequestError(
                f"the text has {len(encoded)} bytes; allowed: {MAX_BYTES}. Look up a part of it",
                status=413,
            )
        try:
            answer = attribution(encoded, min_tokens=MIN_TOKENS, most_spans=MAX_SPANS)
        except DataError as error:
            raise RequestError(str(error)) from None
        spans = [
            {
                "start": len(encoded[: span["start"]].decode("utf-8", "ignore")),
                "end": len(encoded[: span["stop"]].decode("utf-8", "ignore")),
                "count": span["count"],
                "sources": list(self._sources(span, answer["documents"])),
            }
            for span in answer["spans"]
        ]
        return {"spans": joined(spans)}

    def _sources(
        self, span: dict[str, Any], documents: Sequence[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Give the documents that hold all of a span, the best first."""
        prefixes = [file.prefix for file in self._need_attribution().files]
        for document in documents:
            for part in document["parts"]:
                if part["start"] > span["start"] or part["stop"] < span["stop"]:
                    continue
                source = Source.of(document["provenance"])
                yield {
                    "id": f"{prefixes.index(document['dataset'])}-{document['document']}",
                    "repository": source.repository,
                    "path": source.path,
                    "license": source.license,
                    "first_line": part["lines"][0],
                    "last_line": part["lines"][1],
                    "dataset_document": f"{Path(document['dataset']).name} {document['document']}",
                }
                break

    def source(self, name: str, line: int) -> dict[str, Any]:
        """Give the lines of a document around one. RequestError for a document that is not there or is opted out."""
        attribution = self._need_attribution()
        found = re.fullmatch(r"(\d{1,6})-(\d{1,12})", name, re.ASCII)
        number, document = map(int, found.groups()) if found else (-1, -1)
        files = attribution.files
        is_there = (
            0 <= number < len(files)
            and document < files[number].dataset.num_documents
            and not files[number].is_excluded(document)
        )
        if not is_there:
            raise RequestError(f"there is no source {name[:40]!r}", status=404)
        lines = files[number].source(document, attribution.spelling).split("\n")
        line = min(line, len(lines))
        first = max(line - LINES_AROUND, 1)
        return {
            "text": "\n".join(lines[first - 1 : line + LINES_AROUND]),
            "text_first_line": first,
            "num_lines": len(lines),
        }

    def training(self) -> dict[str, Any]:
        """Give the curves of the run, thinned. RequestError if there are none yet."""
        if self._metrics is None:
            raise RequestError(
                "no run is watched; start the server with --training-run DIR", status=404
            )
        try:
            stat = self._metrics.stat()
            seen = (stat.st_size, stat.st_mtime_ns)
            if self._read is None or self._read[0] != seen:
                self._read = (seen, _thinned(read_curves(self._metrics)))
        except OSError as error:
            raise RequestError(f"{self._metrics.name}: {error.strerror}", status=404) from None
        except DataError as error:
            raise RequestError(str(error), status=404) from None
        return self._read[1]

    def _need_attribution(self) -> Attribution:
        if self._attribution is None:
            raise RequestError(
                "nothing is looked up here; start the server with --attribution PREFIX", status=404
            )
        return self._attribution


def playground_routes(playground: Playground, options: ServingOptions) -> list[BaseRoute]:
    """Give the routes below /playground."""

    look_ups = anyio.CapacityLimiter(1)  # what waits takes no thread from others
    num_asked = 0

    async def about(_request: Request) -> Response:
        return JSONResponse(playground.about())

    async def matches(request: Request) -> Response:
        body = await read_body(request, options.max_body_bytes, options.body_seconds)
        text = _text_of(body)
        nonlocal num_asked
        if num_asked > MAX_WAITING:
            raise RequestError(
                f"{MAX_WAITING} texts wait to be looked up; ask again in a while",
                status=429,
                headers={"Retry-After": "1"},
            )
        num_asked += 1
        try:
            found = await anyio.to_thread.run_sync(playground.matches, text, limiter=look_ups)
        finally:
            num_asked -= 1
        return JSONResponse(found)

    async def source(request: Request) -> Response:
        name, line = request.query_params.get("id", ""), request.query_params.get("line", "1")
        if not re.fullmatch(r"[1-9]\d{0,8}", line, re.ASCII):
            raise RequestError(f"line is {line[:40]!r}; allowed: a number from 1 on", param="line")
        return JSONResponse(await run_in_threadpool(playground.source, name, int(line)))

    async def training(_request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(playground.training))

    return [
        Route("/about", about),
        Route("/matches", matches, methods=["POST"]),
        Route("/source", source),
        Route("/training", training),
    ]


def page() -> Mount:
    """Give the route of the page's files."""
    return Mount("/", _Page(directory=PAGE, html=True))


class _Page(StaticFiles):
    """Files of the page, with headers that keep it from loading anything else."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


def _text_of(body: bytes) -> str:
    """Read {"text": …}. Raises RequestError."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    text = values.get("text") if isinstance(values, dict) else None
    if not isinstance(text, str) or set(values) != {"text"}:
        raise RequestError('the body is not {"text": "…"}', param="text")
    return text


def joined(spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join runs that overlap, in order of their starts: each with count and sources of the longest that it is made of.

    Where a text repeats itself, a run begins at nearly every token.
    """
    result: list[dict[str, Any]] = []
    longest = 0
    for span in spans:
        size = span["end"] - span["start"]
        if not result or span["start"] >= result[-1]["end"]:
            result.append(dict(span))
            longest = size
            continue
        last = result[-1]
        last["end"] = max(last["end"], span["end"])
        if size > longest:
            longest = size
            last |= {"count": span["count"], "sources": span["sources"]}
    return result


def _thinned(curves: Curves) -> dict[str, Any]:
    """Give curves as JSON values of at most MAX_POINTS points each, the last one among them."""

    def points(values: dict[int, float]) -> list[tuple[int, float]]:
        every = sorted(values.items())
        step = -(-len(every) // MAX_POINTS) or 1
        return every[(len(every) - 1) % step :: step]

    return {
        "name": curves.name,
        "iteration": max(
            [0, *curves.train, *(i for one in curves.validation.values() for i in one)]
        ),
        "consumed_tokens": curves.num_tokens,
        "losses": points(curves.train),
        "speeds": points(curves.tokens_per_second),
        "validation": {name: points(values) for name, values in curves.validation.items()},
    }
