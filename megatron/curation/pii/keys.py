"""Keys and passwords that rules can tell: tokens by their form, private keys, random strings (StarCoder §4).

A random string needs less to count where its name says that it is secret, and where it stands in quotes, than where
nothing does. Knows nothing of what is done with what is found.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from megatron.curation.pii.randomness import is_gibberish, measured, unreadable
from megatron.curation.pii.scan import PREFIX, WORD, Found, Place

if TYPE_CHECKING:
    from megatron.curation._pii_scan import Measured

# What the token begins with, and the whole of it.
TOKENS: tuple[tuple[str, str, str], ...] = (
    *(("github", f"gh{kind}_", r"[A-Za-z0-9]{36}") for kind in "pousr"),
    ("github", "github_pat_", r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    ("gitlab", "glpat-", r"[\w-]{20}"),
    *(("slack", f"xox{kind}-", r"[A-Za-z0-9-]{20,}") for kind in "abeoprs"),
    ("slack", "hooks.slack.com/services/", r"T\w{8,12}/B\w{8,12}/\w{22,26}"),
    ("aws", "AKIA", r"[A-Z0-9]{16}"),
    ("aws", "ASIA", r"[A-Z0-9]{16}"),
    *(
        ("stripe", f"{kind}_{mode}_", r"[A-Za-z0-9]{24,}")
        for kind in ("sk", "rk")
        for mode in ("live", "test")
    ),
    ("google", "AIza", r"[\w-]{35}"),
    ("google", "ya29.", r"[\w-]{30,}"),
    ("google", "GOCSPX-", r"[\w-]{28}"),
    ("sendgrid", "SG.", r"[\w-]{22}\.[\w-]{43}"),
    ("npm", "npm_", r"[A-Za-z0-9]{36}"),
    ("pypi", "pypi-AgE", r"[\w-]{50,}"),
    ("huggingface", "hf_", r"[A-Za-z]{34}"),
    ("openai", "sk-", r"(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"),
    ("twilio", "SK", r"[0-9a-f]{32}"),
    ("digitalocean", "dop_v1_", r"[0-9a-f]{64}"),
    *(("shopify", f"shp{kind}_", r"[0-9a-fA-F]{32}") for kind in ("at", "ca", "pa", "ss")),
    ("databricks", "dapi", r"[0-9a-f]{32}"),
    ("vault", "hvs.", r"[\w-]{24,}"),
    ("mailgun", "key-", r"[0-9a-f]{32}"),
    ("jwt", "eyJ", r"[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
)
GUESSES = ("entropy", "named")  # rules that know no form
# Tokens that begin like other words.
FORMS = re.compile(
    r"(?:(?P<mailchimp>[0-9a-f]{32}-us\d{1,2})|(?P<discord>[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,38})"
    r"|(?P<artifactory>AKC[A-Za-z0-9]{10,}))(?![\w-])"
)
PEM = re.compile(  # up to the next key at most, so that marks without an end are not read from each one on
    r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)(?: BLOCK)?-----(?:\\r|\\n|\s)*((?:(?!-----BEGIN).){40,20000}?)"
    r"(?:\\r|\\n|\s)*-----END \1",
    re.S,
)
URL_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}\Z")
URL_PASSWORD = re.compile(r"://[^\s:/@'\"<>{}$]{0,64}:([^\s:/@'\"<>{}$%*]{3,128})@[\w\[]")
_DUMMY = "password pass passwd pwd secret xxx xxxx token changeme user username foo bar baz test"
DUMMY = frozenset(_DUMMY.split())

# What stands before a value whose name says that it is secret, up to the value; in small letters, as HASHES is, since
# expressions without regard to case take six times as long.
NAMED = re.compile(
    r"(?:key|secret|token|passw(?:or)?d|pwd|auth|credential)\w{0,20}[\"'\]]{0,2}\s{0,4}(?::|=>?|:=)\s{0,4}"
    r"(?:[bru]?[\"']|(?:bearer|token|basic) )?$"
)
NAMED_SIZE = 50  # characters of the longest
TYPE_NAME = re.compile(r"::\w+[\"']\s*:\s*[\"']$")  # "AWS::KMS::Key": "…" tells of a type
VALUE = re.compile(r"[A-Za-z0-9+/_.=-]{16,128}")
HASHES = re.compile(
    r"sha|md5|hash|digest|checksum|integrity|fingerprint|commit|revision|uuid|guid|etag"
)
HEX = re.compile(r"[0-9A-Fa-f-]+")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)
URL_PATH = re.compile(r"://[^\s?=&#]*$")
MIN_ENTROPY, MIN_HEX_ENTROPY = 4.2, 3.0
MIN_RANDOM = 24  # characters of a random string that nothing names
MIN_CHANGES = 0.43  # of its neighbours differ in kind, where nothing quotes it; 0.62 if it is random, names have 0.3
MIN_NAMED_CHANGES = 0.3  # the same where a name says that it is secret; not for hexadecimal
MIN_MIXED, MIXED_CHANGES = (
    32,
    0.5,
)  # long, and so mixed in kind that its pairs of letters need not be asked
MAX_UNREADABLE = 0.1  # of the bytes that base64 of a text stands for; 0.6 if they are random
BLOB_LINE = 48  # characters of a line that is base64 and nothing else
BY_PREFIX: dict[str, list[tuple[str, re.Pattern[str]]]] = {
    prefix: [
        (rule, re.compile(rf"(?<!\w){re.escape(prefix)}(?:{rest})(?!\w)"))
        for rule, begin, rest in TOKENS
        if begin == prefix
    ]
    for _, prefix, _ in TOKENS
}


def has_github_checksum(token: str) -> bool:
    """Tell whether the last six characters are the CRC-32 of those before, in base 62, as GitHub makes them."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    body, check = token[4:-6], token[-6:]
    value, spelled = zlib.crc32(body.encode()), ""
    while value:
        value, digit = divmod(value, 62)
        spelled = digits[digit] + spelled
    return spelled.rjust(6, "0") == check


def keys(text: str, places: Sequence[Place]) -> Iterator[Found]:
    """Find tokens by their form, private keys, passwords of URLs, and random strings."""
    token = (0, 0)
    for kind, begin, end in places:
        if kind == PREFIX:
            for rule, pattern in BY_PREFIX[text[begin:end]]:
                match = pattern.match(text, begin)
                if match and _is_token(rule, text[begin:end], match[0]):
                    token = match.span()
                    yield Found(*token, "KEY", rule)
        elif kind == WORD and (begin, end) != token and (found := _random(text, begin, end)):
            yield found
    if "PRIVATE KEY" in text:
        for match in PEM.finditer(text):
            yield Found(*match.span(2), "KEY", "pem")
    place = text.find("://") if "@" in text else -1
    while place >= 0:
        match = URL_PASSWORD.match(text, place)
        scheme = URL_SCHEME.search(text, max(place - 21, 0), place) if match else None
        if match and scheme and match[1].lower() not in DUMMY:
            yield Found(*match.span(1), "PASSWORD", "url")
        place = text.find("://", place + 1)


def _is_token(rule: str, prefix: str, token: str) -> bool:
    if "EXAMPLE" in token or len(set(token[-16:])) < 6:
        return False
    if rule == "github" and token.startswith("gh") and token[3] == "_":
        return has_github_checksum(token) or is_gibberish(measured(token[4:]))
    if rule == "jwt":
        head = token.partition(".")[0]
        try:
            return b'"alg"' in base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
        except (binascii.Error, ValueError):
            return False
    body = measured(token.removeprefix(prefix))
    is_mixed = body.changes >= MIN_CHANGES or 4 * body.digits >= body.size
    return rule in ("aws", "pypi", "google") or is_mixed or is_gibberish(body)


def _is_random_token(token: str) -> bool:
    word = measured(token)
    return word.changes >= MIN_CHANGES or is_gibberish(word)


def _random(text: str, begin: int, end: int) -> Found | None:
    """Give a word if it is random enough for where it stands."""
    near = max(begin - 100, 0)
    line = text[max(text.rfind("\n", near, begin) + 1, near) : begin]
    is_quoted = line[-1:] in ("'", '"', "`") and text[end : end + 1] == line[-1:]
    token = FORMS.match(text, begin)
    if token and _is_random_token(token[0]):
        return Found(*token.span(), "KEY", str(token.lastgroup))
    if NAMED.search(line[-NAMED_SIZE:].lower()) and not TYPE_NAME.search(line):
        match = VALUE.match(text, begin)
        assert match, "a word is a value"
        value, end = match[0], match.end()
        word = measured(value)
        is_open = line[-1:] not in ("'", '"', "`")
        is_code = text[end : end + 1] in ("(", "[", "{") or (
            word.changes < MIN_NAMED_CHANGES and not HEX.fullmatch(value)
        )
        is_secret = _is_random(value, word, is_named=True) and not (is_open and is_code)
        rule = "named"
    elif end - begin >= MIN_RANDOM:
        value = text[begin:end]
        word = measured(value)
        is_secret = (
            _is_random(value, word, is_named=False)
            and (is_quoted or (word.changes >= MIN_CHANGES and _stands_out(text, begin, end, line)))
            and unreadable(value) > MAX_UNREADABLE
        )
        rule = "entropy"
    else:
        return None
    if is_secret and not HASHES.search(line.lower()) and not HASHES.match(value.lower()):
        return Found(begin, end, "KEY", rule)
    return None


def _stands_out(text: str, begin: int, end: int, line: str) -> bool:
    """Tell a random string that nothing quotes from parts of paths, of longer words, and of data in many lines."""
    if text[begin] == "/" or URL_PATH.search(line):
        return False
    if line.endswith((".", "%", "\\", "$", "base64,")) or text[end : end + 1] in ("(", "[", "{"):
        return False
    if line.endswith("=") and not line[-2:-1].isalnum():
        return False
    return not _is_data(text, begin, end, line)


def _is_data(text: str, begin: int, end: int, line: str) -> bool:
    """Tell base64 that goes over lines, or that mail has for other letters."""
    after = text[end : end + 130]
    if line.endswith("?"):
        return True
    begins, ends = not line.strip(), after[:1] in ("", "\n", "\r")
    if begins and ends and end - begin >= BLOB_LINE:
        return True
    place = begin - len(line)
    before = text[max(place - 130, 0) : place].rstrip().rpartition("\n")[2]
    return (begins and _is_blob_line(before)) or (
        ends and end - begin >= BLOB_LINE and _is_blob_line(after.lstrip().partition("\n")[0])
    )


def _is_blob_line(line: str) -> bool:
    value = line.strip()[:128]
    return len(value) >= BLOB_LINE and VALUE.fullmatch(value) is not None


def _is_random(value: str, word: Measured, *, is_named: bool) -> bool:
    if HEX.fullmatch(value):
        return (
            is_named
            and word.entropy >= MIN_HEX_ENTROPY
            and not UUID.fullmatch(value)
            and word.digits < word.size
        )
    kinds = (word.digits > 0) + (word.capitals > 0) + (word.small > 0)
    if kinds < (2 if is_named else 3) or not word.digits:
        return False
    is_mixed = word.size >= MIN_MIXED and word.changes >= MIXED_CHANGES
    if not is_named and (
        word.digits < (1 if is_mixed else 3)
        or value.count("/") > 3
        or value.count("_") + value.count("-") > 3
    ):
        return False
    if word.entropy < min(MIN_ENTROPY, math.log2(word.size) * 0.85):
        return False
    is_alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" in value.upper() or "0123456789" in value
    return (is_mixed or is_gibberish(word)) and not is_alphabet
