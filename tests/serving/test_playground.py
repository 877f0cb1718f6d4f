"""The page and what it asks, from a server of its own process; and the page itself in a browser, where there is one."""

import asyncio
import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("pydivsufsort", reason="pip install pydivsufsort")
pytest.importorskip("megatron.attribution._suffix_search", reason="csrc/ is not compiled: make env")
pytest.importorskip("uvicorn", reason="needs uvicorn: requirements.txt")
from starlette.requests import Request

from megatron.convert.source import ModelSource
from megatron.metrics_file import METRICS_FILE
from megatron.serving.error import RequestError
from megatron.serving.options import ServingOptions
from megatron.serving.playground import MAX_WAITING, PAGE, joined, playground_routes
from tests.attribution.conftest import index, write
from tests.serving.conftest import NUM_POSITIONS
from tests.serving.process import ServerProcess

SOURCE = [f"def function_{n}(a, b):\n    return a * {n} + b  # 🎉 é\n\n\n" for n in range(400)]
OPTED_OUT = "".join(f"def gone_{n}(a):\n    return a - {n} * a\n\n\n" for n in range(40))
ROWS = {
    "repo": ["octocat/a", "octocat/b", "octocat/gone"],
    "path": ["a.py", "b.py", "gone.py"],
    "license": ["MIT", None, "MIT"],
}
STEPS = [
    *(
        {
            "iteration": n,
            "lm_loss": 6.0 / n,
            "tokens_per_second": 10.0 * n,
            "consumed_tokens": 64 * n,
        }
        for n in range(1, 5)
    ),
    {"iteration": 4, "validation": "python", "lm_loss": 2.5, "ppl": 12.2},
]


@pytest.fixture(scope="module")
def playground(run: Path, tmp_path_factory):
    """A server with two documents to find, one that is opted out, and a run to watch."""
    folder = tmp_path_factory.mktemp("playground")
    tokenizer = ModelSource.open(run).tokenizer
    texts = ["".join(SOURCE[:200]), "".join(SOURCE[200:]), OPTED_OUT]
    prefix = write(folder / "code", texts, tokenizer, rows=ROWS)
    index([prefix], tokenizer, "trace")
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / METRICS_FILE).write_text("".join(json.dumps(step) + "\n" for step in STEPS))
    opted_out = folder / "out.jsonl"
    opted_out.write_text('{"repo": "octocat/gone"}\n')
    flags = (
        "--attribution",
        f"{prefix}.idx",
        "--exclude-documents",
        str(opted_out),
        "--training-run",
        str(checkpoints),
    )
    with ServerProcess(run, *flags) as process:
        yield process


def ask(server: ServerProcess, path: str, body: object = None) -> tuple[int, dict, dict]:
    """The status, the body and the headers of an answer."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text, headers = answer.read(), dict(answer.headers)
            is_json = headers["content-type"] == "application/json"
            return answer.status, json.loads(text) if is_json else {"text": text.decode()}, headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), dict(error.headers)


def test_a_text_is_found_in_characters_with_its_source(playground: ServerProcess):
    text = "# é🎉 mine\n" + "".join(SOURCE[210:213]) + "# mine\n"
    status, answer, _ = ask(playground, "playground/matches", {"text": text})
    assert status == 200
    (span,) = answer["spans"]
    assert text[span["start"] : span["end"]].strip() == "".join(SOURCE[210:213]).strip()
    (best,) = span["sources"]
    assert (best["repository"], best["path"], best["license"]) == ("octocat/b", "b.py", "")
    assert (best["first_line"], best["last_line"]) == (41, 50)
    status, source, _ = ask(playground, f"playground/source?id={best['id']}&line=41")
    shown = source["text"].split("\n")[41 - source["text_first_line"] :]
    assert status == 200 and shown[:2] == SOURCE[210].split("\n")[:2]
    assert source["num_lines"] == 801 and len(source["text"].split("\n")) == 241


def test_what_is_opted_out_is_neither_found_nor_shown(playground: ServerProcess):
    _, answer, _ = ask(playground, "playground/matches", {"text": OPTED_OUT[:300]})
    assert answer == {"spans": []}
    status, answer, _ = ask(playground, "playground/source?id=0-2")
    assert status == 404 and "no source '0-2'" in answer["error"]["message"]
    status, answer = playground.ask(prompt=OPTED_OUT[:200], max_tokens=4, echo=True)
    assert status == 200 and "octocat" not in json.dumps(answer["choices"][0]["attribution"])


def test_runs_that_overlap_are_one_with_the_sources_of_the_longest():
    spans = [
        {"start": 0, "end": 10, "count": 3, "sources": ["a"]},
        {"start": 5, "end": 25, "count": 1, "sources": ["b"]},
        {"start": 24, "end": 30, "count": 9, "sources": ["c"]},
        {"start": 30, "end": 40, "count": 2, "sources": []},
    ]
    assert joined(spans) == [
        {"start": 0, "end": 30, "count": 1, "sources": ["b"]},
        {"start": 30, "end": 40, "count": 2, "sources": []},
    ]
    assert spans[0]["end"] == 10 and joined([]) == []


def test_a_run_is_shown_as_its_metrics_say(playground: ServerProcess):
    _, answer, _ = ask(playground, "playground/training")
    assert answer["losses"] == [[n, 6.0 / n] for n in range(1, 5)]
    assert answer["speeds"][-1] == [4, 40.0] and answer["validation"] == {"python": [[4, 2.5]]}
    assert answer["name"].startswith("playground")
    assert (answer["iteration"], answer["consumed_tokens"]) == (4, 256)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("playground/matches", b"{", 400, "not JSON"),
        ("playground/matches", {"text": 1}, 400, 'not {"text"'),
        ("playground/matches", {"text": "x" * 100_001}, 413, "allowed: 100000"),
        ("playground/source?id=0-2", None, 404, "no source '0-2'"),
        ("playground/source?id=0-3", None, 404, "no source '0-3'"),
        ("playground/source?id=../0-1", None, 404, "no source"),
        ("playground/source?id=0-1&line=0", None, 400, "from 1 on"),
        ("page/../../../etc/passwd", None, 404, "nothing at this address"),
    ],
)
def test_bad_questions_are_refused(playground: ServerProcess, path, body, status, message):
    code, answer, _ = ask(playground, path, body)
    assert code == status and message in answer["error"]["message"]


def test_the_page_loads_nothing_from_elsewhere(playground: ServerProcess, server: ServerProcess):
    for name in ("", *(path.name for path in PAGE.iterdir())):
        status, answer, headers = ask(playground, name)
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
        assert "http" not in answer["text"].replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|\beval\b|document\.write", answer["text"]
        )
    about = ask(playground, "playground/about")[1]
    assert about["max_tokens"] == NUM_POSITIONS - 1
    assert about["attribution"] and about["training"] and about["infill"]
    plain = ask(server, "playground/about")[1]
    assert not plain["attribution"] and not plain["training"]
    assert (
        "--attribution" in ask(server, "playground/matches", {"text": "a"})[1]["error"]["message"]
    )


def test_texts_wait_for_one_another_and_too_many_are_refused():
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        num_at_once = 0

        def matches(self, text: str) -> dict:
            self.num_at_once += 1
            assert self.num_at_once == 1
            started.set()
            go_on.wait(60)
            self.num_at_once -= 1
            return {}

    async def ask_all() -> list:
        endpoint = playground_routes(Slow(), ServingOptions())[1].endpoint

        async def receive() -> dict:
            return {"type": "http.request", "body": b'{"text": "a"}'}

        async def one() -> int:
            try:
                answer = await endpoint(Request({"type": "http", "headers": []}, receive))
            except RequestError as error:
                return error.status
            return answer.status_code

        first = asyncio.create_task(one())
        await asyncio.to_thread(started.wait, 60)
        others = [asyncio.create_task(one()) for _ in range(MAX_WAITING + 3)]
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        go_on.set()
        return sorted([await first, *await asyncio.gather(*others)])

    assert asyncio.run(ask_all()) == [200] * (1 + MAX_WAITING) + [429] * 3


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_the_page_completes_fills_in_and_shows_sources(playground, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{playground.port}/")
    page.wait_for_selector("#check:visible")
    page.fill("#max_tokens", "5")
    before, after = "".join(SOURCE[20:23]), "".join(SOURCE[300:302])
    page.fill("#text", before)
    page.focus("#text")
    page.keyboard.press("Control+End")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#matches button")
    written = page.input_value("#text")
    assert written.startswith(before) and len(written) > len(before)
    assert page.locator("#shown mark:not(.match)").count() >= 1
    page.click("#matches button")
    page.wait_for_selector("#source-text .match")
    assert page.inner_text("#source-name") == "octocat/a/a.py"
    assert SOURCE[21].split("\n")[0] in page.inner_text("#source-text")
    page.click("#discard")
    assert page.input_value("#text") == before
    page.fill("#text", before + after)
    place = len(before.encode("utf-16-le")) // 2
    page.evaluate(f"document.getElementById('text').setSelectionRange({place}, {place})")
    page.wait_for_selector("#generate:has-text('Fill in')")
    page.click("#generate")
    page.wait_for_selector("#discard:enabled")
    filled = page.input_value("#text")
    assert filled.startswith(before) and filled.endswith(after)
    page.fill("#max_tokens", "100000")
    page.click("#generate")
    assert page.evaluate("document.querySelectorAll('#controls input:invalid').length") == 1
    page.focus("#tab-write")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#losses svg")
    assert "python 2.5" in page.text_content("#losses")
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert complaints == []
