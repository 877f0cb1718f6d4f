"""`python -m tests.serving.attack --requests 1000 --seed 1`: send a server what no client should, and see it stand.

What is sent is a function of (seed, number). A server may refuse, close, or answer; it may neither fail (5xx), nor grow,
nor keep anything in work afterwards, and it then writes the same text as before.
"""

import argparse
import json
import random
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.inference.models import make_model
from tests.serving.parameters import OPENAIS, OURS
from tests.serving.process import ServerProcess

LONG = {"prompt": "def f(", "max_tokens": 4000, "ignore_eos": True}
VALID = {"prompt": "def f(", "max_tokens": 5, "temperature": 0}
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, -0.0, 1e-320, 1e308, 10**25, "", "a", "\0", "\ud800",
    "é" * 5000, [], {}, [[]], [{}], [None], [0], [-1], [280], [2**63], [1.5], [True], ["a", 1], [["a"]], [[1], []],
    ["a"] * 1000, list(range(280)), [[1]] * 500, {"a": {"b": [1]}}, {"include_usage": 3}, "psm", "run", "../../etc/passwd",
)  # fmt: skip
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@dataclass(frozen=True)
class Attack:
    """Bytes for a connection of their own, and what is done with it then."""

    kind: str
    data: bytes
    end: str = "read"  # "leave": without reading; "reset"; "half": sends no more, and reads


def post(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


def damaged_json(draw: random.Random) -> Attack:
    body = bytearray(json.dumps(VALID | {"stop": ["a", "\n"], "n": 2, "seed": 3}).encode())
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(body))
        change = draw.randrange(3)
        if change == 0:
            body[place] = draw.randrange(256)
        elif change == 1:
            del body[place : place + draw.randint(1, 9)]
        else:
            body[place:place] = draw.choice([b'"', b"{", b"]", b"\\u", b"\xff", b"e999", b"\0"])
        body = body or bytearray(b" ")
    return Attack("damaged JSON", post(bytes(body)))


def wrong_value(draw: random.Random) -> Attack:
    values = dict(VALID)
    for _ in range(draw.randint(1, 3)):
        values[draw.choice([*OPENAIS, *OURS, "x", ""])] = draw.choice(VALUES)
    return Attack("wrong values", post(json.dumps(values).encode()))


def strange_number(draw: random.Random) -> Attack:
    number = draw.choice(
        [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "9" * 4000,
            "-" + "9" * 30,
            "0x1",
            "1e-999",
            "00",
            "1_0",
        ]
    )
    name = draw.choice(["temperature", "max_tokens", "top_p", "n", "seed", "logprobs", "prompt"])
    body = f'{{"prompt": "a", "max_tokens": 3, "{name}": {number}}}'
    return Attack("numbers", post(body.encode()))  # fmt: skip


def deep_nesting(draw: random.Random) -> Attack:
    depth = draw.choice([100, 1000, 1025, 9000])
    opening, closing = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    body = b'{"prompt": ' + opening * depth + b"1" + closing * draw.choice([0, depth]) + b"}"
    return Attack("deep nesting", post(body))


def broken_text(draw: random.Random) -> Attack:
    text = bytes(draw.randrange(256) for _ in range(draw.randint(1, 300)))
    return Attack("not UTF-8", post(b'{"prompt": "' + text + b'"}'))


def huge_body(draw: random.Random) -> Attack:
    size = draw.choice([30_000, 300_000, 5_000_000])
    way = draw.randrange(3)
    if way == 0:
        return Attack("huge bodies", post(b'{"prompt": "' + b"a" * size + b'"}'))
    if way == 1:
        return Attack(
            "huge bodies", HEAD + b"Content-Length: %d\r\n\r\n" % 10 ** draw.randint(9, 40)
        )
    chunk = b"%x\r\n" % 1000 + b"a" * 1000 + b"\r\n"
    return Attack(
        "huge bodies", HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * (size // 1000)
    )


def bad_http(draw: random.Random) -> Attack:
    body = json.dumps(VALID).encode()
    lines = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 20_000 + b"\r\n",
        b"GET /%ff%00/../..//etc/passwd?%zz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n" + body,
        HEAD + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\n" + body,
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + body,
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + body,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + body,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + body,
        HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body),
        HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        HEAD.replace(b"POST", b"\0\0"),
        HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\0garbage\r\n\r\n" * 5,
        bytes(draw.randrange(256) for _ in range(200)) + b"\r\n\r\n",
    ]
    return Attack("not HTTP", draw.choice(lines))


def elsewhere(draw: random.Random) -> Attack:
    method = draw.choice(["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "POST", "BREW"])
    path = draw.choice(
        [
            "/",
            "/v1",
            "/v1/completions",
            "/v1/models/%00",
            "/v1/models/a/../b",
            "/health",
            "/metrics",
            "*",
            "//x",
        ]
    )
    extra = draw.choice(
        ["", "Origin: http://a.b\r\n", "Authorization: Bearer " + "x" * 5000 + "\r\n"]
    )
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{extra}Connection: close\r\n\r\n"
    return Attack("other addresses", head.encode())  # fmt: skip


def half_request(draw: random.Random) -> Attack:
    whole = post(json.dumps(VALID).encode())
    cut = whole[: draw.randrange(1, len(whole))]
    return Attack("half requests", cut, draw.choice(["read", "half", "leave", "reset"]))


def early_leave(draw: random.Random) -> Attack:
    values = LONG | {"n": draw.randint(1, 4), "stream": draw.random() < 0.5, "logprobs": 20}
    return Attack("early leave", post(json.dumps(values).encode()), draw.choice(["leave", "reset", "half"]))  # fmt: skip


def pipelined(draw: random.Random) -> Attack:
    body = json.dumps(VALID).encode()
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return Attack("pipelined", one * draw.randint(2, 9), draw.choice(["read", "leave", "reset"]))


def valid(draw: random.Random) -> Attack:
    return Attack("valid", post(json.dumps(VALID | {"seed": draw.randrange(9)}).encode()))


KINDS: tuple[Callable[[random.Random], Attack], ...] = (
    damaged_json, wrong_value, strange_number, deep_nesting, broken_text, huge_body, bad_http, elsewhere,
    half_request, early_leave, pipelined, valid,
)  # fmt: skip


def make_attack(seed: int, number: int) -> Attack:
    draw = random.Random(f"{seed} {number}")
    return KINDS[number % len(KINDS)](draw)


def send(server: ServerProcess, attack: Attack) -> list[str]:
    """Make an attack; give the statuses of the answers, or how it ended without one."""
    with server.connect() as connection:
        try:
            connection.sendall(attack.data)
            if attack.end == "leave":
                return ["left"]
            if attack.end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return ["left"]
            if attack.end == "half":
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        except (ConnectionResetError, BrokenPipeError):
            return ["reset"]
    return re.findall(r"HTTP/1\.1 (\d+) ", b"".join(parts).decode("utf-8", "replace")) or ["closed"]


def run(server: ServerProcess, attacks: list[Attack], num_threads: int) -> dict[str, Counter]:
    """Make attacks, several at a time; count what became of each kind. Raises AssertionError at a 5xx."""
    results: dict[str, Counter] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for attack, ends in zip(attacks, pool.map(lambda one: send(server, one), attacks), strict=True):  # fmt: skip
            assert not any(end.startswith("5") for end in ends), (ends, attack.data[:3000])
            results.setdefault(attack.kind, Counter()).update(ends)
    return results


def check_unharmed(server: ServerProcess, text: str) -> None:
    """Hold that nothing is left in work, and a request is answered as before."""
    server.wait_for("samples", lambda number: number == 0)
    server.wait_for("rows_in_use", lambda number: number == 0)
    assert text_of(server) == text
    metrics = server.metrics()
    assert metrics["megatron_serving_engine_failures_total"] == 0
    assert metrics['megatron_serving_requests_total{outcome="failed"}'] == 0
    assert not any("Traceback" in line for line in server.log), server.log


def text_of(server: ServerProcess) -> str:
    status, answer = server.ask(**VALID)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def resident_mb(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.processes[0].pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    flags = "--header-seconds 2 --body-seconds 2 --stall-seconds 2 --max-body-bytes 1000000"
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder) / "run", max_position_embeddings=4096)
        with ServerProcess(path, *flags.split(), method="spawn") as server:
            text, start, total = text_of(server), time.monotonic(), {}
            sizes = [resident_mb(server)]
            for first in range(0, args.requests, 100):
                numbers = range(first, min(first + 100, args.requests))
                attacks = [make_attack(args.seed, number) for number in numbers]
                for kind, ends in run(server, attacks, args.threads).items():
                    total.setdefault(kind, Counter()).update(ends)
                sizes.append(resident_mb(server))
            check_unharmed(server, text)
            seconds = time.monotonic() - start
    for kind, ends in total.items():
        print(f"{kind:18}", ", ".join(f"{end}: {count}" for end, count in sorted(ends.items())))
    print(
        f"{args.requests} requests in {seconds:.0f} s, none answered with 5xx; the server is as before"
    )
    print("resident MB, before and after each 100:", ", ".join(f"{size:.0f}" for size in sizes))


if __name__ == "__main__":
    main()
