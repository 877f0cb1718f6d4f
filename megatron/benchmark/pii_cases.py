"""Made-up personal data in made-up code: values of every kind, what it may stand in, and what only looks like it.

Values are drawn from a seed and belong to nobody. Templates come in two halves, so that a model can be asked about
contexts that it has not seen. Knows nothing of how any of it is found.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Iterator

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase

# Where a value may stand, and the language that must still parse with it and without.
CONTEXTS: dict[str, tuple[str, str]] = {
    "string": ('value = "{}"\n', "python"),
    "comment": ("x = 1  # see {}\n", "python"),
    "docstring": ('def f():\n    """Ask {} first."""\n', "python"),
    "tuple": ("pair = ('{}', 2)\n", "python"),
    "f-string": ("print(f'{{x}} {}')\n", "python"),
    "concatenation": ('x = "a " + "{}" + y\n', "python"),
    "json": ('{{"api_key": "{}", "n": 1}}\n', "json"),
    "yaml": ("secret: '{}'\n", "yaml"),
    "environment": ('export API_TOKEN="{}"\n', "shell"),
    "header": ("// Contact: {}\n", "c"),
    "url": ('u = "http://host.io/?q={}&x=1"\n', "python"),
    "angle": ("<a>{}</a> <{}>\n", "html"),
}

HARD_NEGATIVES = """
version = "10.4.33.21"; foo==1.22.33.44; oid 1.3.6.1.4.1; 2.5.29.17; 127.0.0.1 192.168.0.7 8.8.8.8 203.0.113.9
date 2023-01-02; x[1::2]; std::cout; 12:30:45; fe80::1; ::1; 2001:db8::1; 300.1.2.333
sha = "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"; "integrity": "sha512-Dn2mVZ4qXq8nP1w0zC5rT7vB9yH3kL6jF2gD8sA4xW=="
id = "123e4567-e89b-12d3-a456-426614174000"; key = "application/vnd.ms-excel"; token = "some_long_identifier_name"
key = "abcdefghijklmnopqrstuvwxyz0123456789"; password = "change_me_please_now"; url = "https://user:password@host/"
secret = "AKIAIOSFODNN7EXAMPLE"; path = "/usr/local/lib/python3/SitePackages/Module1"; a = W@x.sum(); me@host.example
key = "RegisterComponentFactory2ForTests"; "getElementsByClassName3AndTagName"; auth = "Authorization-Header-Value"
"""

# Where a model is to find a value: the first half is learned from, the second half asked about.
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "NAME": (
        (
            "# Author: {}",
            "@author {}",
            "// Copyright (c) 2019 {}",
            '"author": "{}",',
            "/* written by {} */",
            "maintainer = '{}'",
            "Signed-off-by: {}",
            "* Reviewed by {}.",
            '__author__ = "{}"',
            "by {}, 2021",
        ),
        (
            "# Contact: {}",
            "# Copyright 2020 {}",
            "authors = ['{}']",
            "-- created by {}",
            "<author>{}</author>",
        ),
    ),
    "USERNAME": (
        (
            "# TODO({}): fix this",
            "user = '{}'",
            "ssh {}@build01",
            "open('/home/{}/data.csv')",
            "login: {}",
            '"user": "{}",',
            "// cc @{}",
            "chown {} out/",
            "username={}",
            "USER {}",
        ),
        (
            "username: '{}'",
            "// TODO({}) remove",
            "scp {}@build02:x .",
            "cd /home/{}/src",
            'login = "{}"',
        ),
    ),
    "PASSWORD": (
        (
            "password = '{}'",
            "DB_PASS={}",
            "passwd: {}",
            '"password": "{}",',
            "login('root', password='{}')",
            'pwd = "{}"',
            "# the password is {}",
            "set password {}",
            "PASSWORD: '{}'",
            "pass: {}",
        ),
        (
            'db_password = "{}"',
            "export PASSWORD={}",
            "connect(user, passwd='{}')",
            "password: {}",
            "pwd: '{}'",
        ),
    ),
    "EMAIL": (
        ("# mail {}", "<{}>", "email = '{}'", '"email": "{}",', "// {}"),
        ("contact: {}", "mailto:{}", "to = ['{}']"),
    ),
    "IP_ADDRESS": (
        ("host = '{}'", "server: {}", "ping {}", 'connect("{}", 80)', "http://{}/x"),
        ("ADDR={}", "# runs on {}", "ip: '{}'"),
    ),
    "KEY": (
        ("token = '{}'", "API_KEY={}", '"secret": "{}",', "key: {}", "# use {}"),
        ('api_key = "{}"', "export TOKEN={}", "secret: '{}'"),
    ),
}
_FILLER = """
import os|def main(args):|    return value + 1|for i in range(10):|x = compute(a, b)|class BaseHandler(object):
# See the Apache License for details|# Further Reading in the Manual|title = 'Monthly Report'|version = '1.22.3.4'
user = get_user(request)|password = None|password = getpass()|username = args.username|token = next(tokens)
if (user.isAdmin()) { return true; }|int main(void) {|} // end of loop|"name": "left-pad",|"version": "2.0.1",
# TODO: remove this|key = lambda item: item.size|log.info('Password changed')|"license": "MIT",|print("Hello World")
<div class="user-name">|SELECT name FROM users;|host = 'localhost'|author = None|email = user.email|mkdir -p build/out
"""
FILLER = [line for row in _FILLER.strip().split("\n") for line in row.split("|")]
_SYLLABLES = """ba ko mi ra ten sul ves ni lor da fen ga hol ju kan lem mo nor pel ri sa tor un vi wen xa yor zel"""
SYLLABLES = _SYLLABLES.split()


def value_of(source: random.Random, kind: str) -> str:
    """Draw a value of a kind."""
    makers = {
        "EMAIL": _email,
        "IP_ADDRESS": lambda source: ".".join(str(source.randint(11, 99)) for _ in range(4)),
        "KEY": lambda source: source.choice([github_token, aws_key, google_key, random_key])(
            source
        ),
        "NAME": lambda source: f"{_word(source).title()} {_word(source).title()}",
        "USERNAME": _username,
        "PASSWORD": _password,
    }
    return makers[kind](source)


def _word(source: random.Random) -> str:
    return "".join(source.choices(SYLLABLES, k=source.randint(2, 3)))


def _email(source: random.Random) -> str:
    name = "".join(source.choices(string.ascii_lowercase, k=6))
    return f"{name}.{source.choice(['x', 'lee'])}@{name[::-1]}.{source.choice(['com', 'co.uk', 'io', 'de'])}"


def _username(source: random.Random) -> str:
    letter, word, number = (
        source.choice(string.ascii_lowercase),
        _word(source),
        source.randint(1, 99),
    )
    return source.choice(
        [f"{letter}{word}", f"{word}{number}", f"{word}_{_word(source)}", f"{word}.{letter}"]
    )


def _password(source: random.Random) -> str:
    word, number = _word(source), source.randint(10, 9999)
    sign = source.choice("!#$%&*+?")
    return source.choice(
        [f"{word.title()}{number}{sign}", f"{word}{sign}{number}", f"{sign}{word}{number}"]
    )


def github_token(source: random.Random) -> str:
    """Draw a token with the checksum of GitHub's."""
    body = "".join(source.choices(BASE62, k=30))
    value, check = zlib.crc32(body.encode()), ""
    while value:
        value, digit = divmod(value, 62)
        check = BASE62[digit] + check
    return f"ghp_{body}{check.rjust(6, '0')}"


def aws_key(source: random.Random) -> str:
    """Draw the id of a key of AWS."""
    return "AKIA" + "".join(source.choices(string.ascii_uppercase + "234567", k=16))


def google_key(source: random.Random) -> str:
    """Draw a key of Google's."""
    return "AIza" + "".join(source.choices(BASE62 + "_-", k=35))


def random_key(source: random.Random) -> str:
    """Draw a key without any mark."""
    return "".join(source.choices(BASE62, k=40))


def documents(
    seed: int, count: int, *, half: int, kinds: tuple[str, ...] = tuple(TEMPLATES)
) -> Iterator[dict[str, object]]:
    """Give records of code with spans, values in templates of one half between lines of none."""
    for number in range(count):
        source = random.Random(f"{seed} {half} {number}")
        text, spans = "", []
        for _ in range(source.randint(4, 9)):
            text += " " * source.choice([0, 0, 4])
            if source.random() < 0.5:
                text += source.choice(FILLER) + "\n"
                continue
            kind = source.choice(kinds)
            before, _, after = source.choice(TEMPLATES[kind][half]).partition("{}")
            value = value_of(source, kind)
            begin = len(text) + len(before)
            spans.append({"start": begin, "end": begin + len(value), "label": kind})
            text += f"{before}{value}{after}\n"
        yield {"id": f"{half}-{number}", "text": text, "spans": spans}
