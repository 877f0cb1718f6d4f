"""What hostile input looks like: bytes, JSON, YAML and values of flags, damaged by a seeded draw. Knows no format."""

import copy
import json
import random
from collections.abc import Callable

NASTY_INTS = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
]
HUGE = 10**400
DEPTH = 100_000
NASTY_VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        0.5,
        -0.0,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *(
        2**31,
        2**63,
        -(2**63),
        HUGE,
        -HUGE,
        "",
        " ",
        "\0",
        "\n",
        "é漢\U0001f600",
        "\u2028",
        "0",
        "nan",
        "x" * 100_000,
    ),
    *([], {}, [None], [[]], {"": 0}, [0] * 1000, "<|endoftext|>", "\ud800"),
]
NASTY_TEXTS = [
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "-0",
        "1.5",
        "1e308",
        "-1e308",
        "1e-320",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "0x10",
        "1_000",
    ),
    *(
        "9" * 20,
        "9" * 5000,
        "-" + "9" * 20,
        "1/0",
        "1/3",
        "True",
        "null",
        "[]",
        "{}",
        "é漢",
        "\u0663",
        "\n",
        "a\nb",
    ),
    *(
        "\0",
        "a\0b",
        "\udcff",
        "%s%n",
        "{0}",
        "..",
        "/",
        "/dev/null",
        "/proc/self/mem",
        "~",
        "$HOME",
        "*",
        "x" * 5000,
    ),
    *(
        "a/" * 3000,
        "--lr",
        "-",
        ",",
        ":",
        "1,",
        "0,0,0",
        "1:0",
        '"',
        "'",
        "0:1",
        "100000000000",
        "4294967296",
    ),
]


def mutate_bytes(draw: random.Random, data: bytes) -> bytes:
    """Damage bytes in one of the ways of disks, copies and enemies; never gives the same."""
    while True:
        changed = bytes(draw.choice(BYTE_MUTATIONS)(draw, bytearray(data)))
        if changed != data:
            return changed


def _place(draw: random.Random, data: bytearray) -> int:
    # Headers are short and decide most.
    return draw.randrange(min(len(data), 64)) if draw.random() < 0.4 else draw.randrange(len(data))


def _flip_bits(draw: random.Random, data: bytearray) -> bytearray:
    for _ in range(draw.choice([1, 1, 1, 8, 64])):
        if data:
            data[_place(draw, data)] ^= 1 << draw.randrange(8)
    return data


def _cut(draw: random.Random, data: bytearray) -> bytearray:
    size = len(data)
    return data[: draw.choice([0, 1, size // 2, max(size - 1, 0), draw.randrange(size + 1)])]


def _grow(draw: random.Random, data: bytearray) -> bytearray:
    return data + draw.choice([b"\0", b"\n", draw.randbytes(8), data, bytes(4096)])


def _insert(draw: random.Random, data: bytearray) -> bytearray:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.randbytes(draw.choice([1, 2, 8, 100])) + data[place:]


def _remove(draw: random.Random, data: bytearray) -> bytearray:
    place = draw.randrange(len(data) + 1)
    return data[:place] + data[place + draw.choice([1, 2, 8, 100]) :]


def _put_number(draw: random.Random, data: bytearray) -> bytearray:
    width = draw.choice([1, 2, 4, 8])
    if len(data) < width:
        return data
    place = _place(draw, data) // width * width if draw.random() < 0.5 else _place(draw, data)
    place = min(place, len(data) - width)
    number = draw.choice(NASTY_INTS) % (1 << 8 * width)
    data[place : place + width] = number.to_bytes(width, draw.choice(["little", "big"]))
    return data


def _swap_parts(draw: random.Random, data: bytearray) -> bytearray:
    first, second, third = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _blank(draw: random.Random, data: bytearray) -> bytearray:
    place, size = draw.randrange(len(data) + 1), draw.choice([4, 16, 512, 4096])
    size = min(size, len(data) - place)
    return data[:place] + bytes([draw.choice([0, 255])]) * size + data[place + size :]


def _replace(draw: random.Random, data: bytearray) -> bytearray:
    nested = draw.choice([b"[" * DEPTH, b'{"a":' * DEPTH, b"[" * DEPTH + b"]" * DEPTH])
    return bytearray(
        draw.choice(
            [
                b"",
                b"\0" * len(data),
                draw.randbytes(len(data)),
                b"null",
                b"[]",
                b"{}",
                b"NaN",
                nested,
                b"\xff\xfe{}\0",
            ]
        )
    )


BYTE_MUTATIONS: list[Callable[[random.Random, bytearray], bytearray]] = [
    *(_flip_bits, _flip_bits, _cut, _grow, _insert, _remove, _put_number, _put_number),
    *(_swap_parts, _blank, _replace),
]


def mutate_json(draw: random.Random, data: bytes) -> bytes:
    """Change a value, a key or the nesting of a JSON text; now and then the text as bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, data)
    value = json.loads(data)
    while True:
        changed = mutate_value(draw, copy.deepcopy(value))
        # A key that comes twice cannot be said as a value.
        text = json.dumps(changed, ensure_ascii=draw.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
        if draw.random() < 0.05 and text[:1] == b"{":
            text = text[:-1] + b"," + text[1:]
        if draw.random() < 0.05:
            text = text.replace(b"null", b"[" * DEPTH + b"]" * DEPTH, 1)
        if text != data and changed != value:
            return text


def mutate_value(draw: random.Random, value: object) -> object:
    """Change one place of nested lists and objects in place, or give another value instead."""
    parent, key = None, None
    place = value
    # Long lists, such as a vocabulary, would swallow all draws: stop at any level.
    while isinstance(place, (dict, list)) and place and (parent is None or draw.random() < 0.75):
        parent = place
        key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        place = parent[key]
    if parent is None:
        return copy.deepcopy(draw.choice(NASTY_VALUES))
    action = draw.randrange(10)
    if action < 5:
        parent[key] = copy.deepcopy(draw.choice(NASTY_VALUES))
    elif action == 5:
        del parent[key]
    elif action == 6 and isinstance(parent, dict):
        parent[draw.choice(["", "\0", "é", key + "x", "type", "id"])] = parent.pop(key)
    elif action == 7:
        other = (
            draw.choice(list(parent)) if isinstance(parent, dict) else draw.randrange(len(parent))
        )
        parent[key], parent[other] = parent[other], parent[key]
    elif action == 8 and isinstance(place, (int, float)) and not isinstance(place, bool):
        parent[key] = draw.choice([place + 1, place - 1, -place, place * 1000, str(place), [place]])
    elif isinstance(place, str):
        parent[key] = draw.choice([place + "x", place[:-1], place * 2, place.upper(), [place]])
    else:
        parent[key] = [copy.deepcopy(place)]
    return value


def mutate_lines(draw: random.Random, data: bytes) -> bytes:
    """Damage JSON lines: one of them as JSON, their order and ends, or all as bytes."""
    lines = data.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    action = draw.randrange(6)
    if action < 3:
        lines[number] = mutate_json(draw, lines[number].strip()) + b"\n"
    elif action == 3:
        lines.insert(
            number,
            draw.choice(
                [
                    b"\n",
                    b"null\n",
                    b"[]\n",
                    b"{}\n",
                    b"\xff\n",
                    b"\0\n",
                    b'"a"\n',
                    b"\r\n",
                    b"1e999\n",
                ]
            ),
        )
    elif action == 4:
        lines[number] = lines[number].replace(b"\n", draw.choice([b"", b"\r", b"\r\n", b"\0\n"]))
    else:
        return mutate_bytes(draw, data)
    changed = b"".join(lines)
    return changed if changed != data else mutate_bytes(draw, data)
