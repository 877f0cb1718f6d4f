"""Personal data and secrets that rules can tell: e-mail, IP addresses, keys, passwords in URLs (StarCoder §4).

Each rule asks first for a literal that its finds must hold, so that most texts cost a scan for a few words. Names and
user names need a model. Knows nothing of what is done with what is found.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """One find: its characters, and what it is: EMAIL, IP_ADDRESS, KEY or PASSWORD."""

    begin: int
    end: int
    kind: str
    rule: str


_TLD = """com org net edu gov mil int info biz name dev app xyz online site tech cloud email blog mobi jobs pro museum
travel asia arpa"""
TLDS = frozenset(_TLD.split())
_NO_COUNTRY = "js py rb sh rs md cc so hs ts pl"
NO_COUNTRY = frozenset(_NO_COUNTRY.split())  # file endings that countries have too
EMAIL_TAIL = re.compile(
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}))(?![\w-]|\.\w|@|\()"
)
EMAIL_HEAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+%-]{0,63}\Z")
EXAMPLE_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.(?:com|org|net|edu)|domain\.com|[\w-]+\.(?:example|test|invalid))$", re.I
)

IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
IPV6 = re.compile(
    r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])"
)
VERSION_BEFORE = re.compile(
    r"(?:version|ver|release|build|rev|oid|[=<>~!]=|[a-z]-|\bv)[\s\"':=(\[]*$", re.I
)
SERVER = re.compile(r"dns|server|host|address|\bip", re.I)
OIDS = ("1.2.840", "1.3.6.1", "2.5.4.", "2.5.29.")
_PUBLIC_DNS = (
    "8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 8.26.56.26 8.20.247.20 "
    "94.140.14.14 94.140.15.15 76.76.19.19 76.223.122.150 2001:4860:4860::8888 2001:4860:4860::8844"
)
PUBLIC_DNS = frozenset(_PUBLIC_DNS.split())

# A literal to look for first, and the whole token.
TOKENS: tuple[tuple[str, str, str], ...] = (
    *(("github", f"gh{kind}_", rf"gh{kind}_[A-Za-z0-9]{{36}}") for kind in "pousr"),
    ("github", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    ("gitlab", "glpat-", r"glpat-[\w-]{20}"),
    ("slack", "xox", r"xox[abeoprs]-[A-Za-z0-9-]{20,}"),
    ("aws", "AKIA", r"AKIA[A-Z0-9]{16}"),
    ("aws", "ASIA", r"ASIA[A-Z0-9]{16}"),
    ("stripe", "k_live_", r"[rs]k_live_[A-Za-z0-9]{24,}"),
    ("google", "AIza", r"AIza[\w-]{35}"),
    ("google", "ya29.", r"ya29\.[\w-]{30,}"),
    ("sendgrid", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    ("npm", "npm_", r"npm_[A-Za-z0-9]{36}"),
    ("pypi", "pypi-AgE", r"pypi-AgE[\w-]{50,}"),
    ("huggingface", "hf_", r"hf_[A-Za-z]{34}"),
    ("openai", "sk-", r"sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"),
    ("mailchimp", "-us", r"[0-9a-f]{32}-us\d{1,2}"),
    ("twilio", "SK", r"SK[0-9a-f]{32}"),
    ("digitalocean", "dop_v1_", r"dop_v1_[0-9a-f]{64}"),
    ("shopify", "shp", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    ("jwt", "eyJ", r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
)
COMPILED = [
    (rule, word, re.compile(rf"(?<![\w]){pattern}(?![\w])")) for rule, word, pattern in TOKENS
]
PEM = re.compile(
    r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)(?: BLOCK)?-----(?:\\r|\\n|\s)*(.{40,20000}?)(?:\\r|\\n|\s)*-----END \1",
    re.S,
)
URL_PASSWORD = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/@'\"<>{}$]{0,64}:([^\s:/@'\"<>{}$%*]{3,128})@[\w\[]"
)
_DUMMY = "password pass passwd pwd secret xxx xxxx token changeme user username foo bar baz test"
DUMMY = frozenset(_DUMMY.split())

SECRET_NAME = re.compile(
    r"(?:key|secret|token|passw(?:or)?d|pwd|auth|credential)\w{0,20}[\"'\]]{0,2}\s{0,4}(?::|=>?|:=)\s{0,4}[bru]?[\"']([A-Za-z0-9+/_.=-]{16,128})[\"']",
    re.I,
)
QUOTED = re.compile(r"[\"']([A-Za-z0-9+/_-]{24,128}={0,2})[\"']")
HASHES = re.compile(
    r"sha\d?|md5|hash|digest|checksum|integrity|fingerprint|commit|revision|uuid|guid|etag", re.I
)
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)
MIN_ENTROPY, MIN_HEX_ENTROPY = 4.2, 3.0
_BIGRAMS = """
th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri ro ic ne ea
ra ce li ch ll be ma si om ur ca el ta la ns di fo ho pe ec pr no ct us ac ot il tr ly nc et ut ss so rs un lo wa ge ie
wh ee wi em ad ol rt po we na ul ni ts mo ow pa im mi ai sh ir su id os iv ia am fi ci vi pl ig tu ev ld ry mp fe bl ab
gh ty op wo sa ay ex ke fr oo av ag if ap gr od bo sp rd do uc bu ei ov by rm ep tt oc fa ef cu rn sc gi da yo cr cl du
ga qu ue ff ba ey ls va um pp ua up lu go ht ru ug ds lt pi rc rr eg au ck ew mu br bi pt ak pu ui rg ib tl ny ki rk ys
ob mm fu ph og ms ye ud mb ip ub oi rl gu dr hr cc tw ft wn nu af hu nn eo vo rv nf xp gn sm fl iz ok nl my gl aw ju oa
eq sy sl ps jo lf nv je nk kn gs dy hy ze ks xt bs ik dd pt rp sk xi oe oy ws lv dl rf eu dg wr xa yi nm eb rb tm xc eh
tc gy rw bj hn
"""
COMMON = frozenset(_BIGRAMS.split())
MAX_COMMON = 0.62  # of a key's pairs of letters that are common in English; identifiers have more


def is_gibberish(text: str) -> bool:
    """Tell random characters from words: few of their pairs of letters are common ones."""
    letters = text.lower()
    pairs = [a + b for a, b in itertools.pairwise(letters) if (a + b).isalpha()]
    others = len(text) - 1 - len(pairs)
    if others * 3 > len(text) * 2:  # digits nearly everywhere: hexadecimal and the like
        return True
    common = sum(pair in COMMON for pair in pairs)
    return common < MAX_COMMON * len(pairs)


def entropy(text: str) -> float:
    """Give Shannon's entropy of the characters, in bits."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def has_github_checksum(token: str) -> bool:
    """Tell whether the last six characters are the CRC-32 of those before, in base 62, as GitHub makes them."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    body, check = token[4:-6], token[-6:]
    value, spelled = zlib.crc32(body.encode()), ""
    while value:
        value, digit = divmod(value, 62)
        spelled = digits[digit] + spelled
    return spelled.rjust(6, "0") == check


def emails(text: str) -> Iterator[Found]:
    """Find addresses round each `@`; no remotes of git, no images for two pixels, no domains for examples."""
    place = text.find("@")
    while place >= 0:
        tail = EMAIL_TAIL.match(text, place)
        head = EMAIL_HEAD.search(text, max(place - 65, 0), place) if tail else None
        if tail and head and _is_email(text, head, tail):
            yield Found(head.start(), tail.end(), "EMAIL", "email")
        place = text.find("@", place + 1)


def _is_email(text: str, head: re.Match[str], tail: re.Match[str]) -> bool:
    name, top = head[0], tail[2].lower()
    if text[head.start() - 1 : head.start()] in ("/", "@", "#", "$", "{") or name[-1] in ".%":
        return False
    if name == "git" or (
        text[tail.end() : tail.end() + 1] == ":" and text[tail.end() + 1 : tail.end() + 2].isalnum()
    ):
        return False  # git@github.com:owner/repository
    is_top = top in TLDS or (len(top) == 2 and top not in NO_COUNTRY)
    return is_top and not EXAMPLE_DOMAIN.search(tail[1])


def addresses(text: str) -> Iterator[Found]:
    """Find public IP addresses that are no versions, object identifiers or well-known resolvers."""
    for match in IPV4.finditer(text):
        if _is_public(match[0]) and not _is_version(text, match):
            yield Found(*match.span(), "IP_ADDRESS", "ipv4")
    if "::" in text or text.count(":") > 5:
        for match in IPV6.finditer(text):
            if _is_public(match[0]):
                yield Found(*match.span(), "IP_ADDRESS", "ipv6")


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast and address not in PUBLIC_DNS


def _is_version(text: str, match: re.Match[str]) -> bool:
    line = text[max(text.rfind("\n", 0, match.start()) + 1, match.start() - 40) : match.start()]
    if match[0].startswith(OIDS) or VERSION_BEFORE.search(line):
        return True
    around = text[max(match.start() - 100, 0) : match.end() + 100]
    return len(match[0]) == 7 and not SERVER.search(around)


def keys(text: str) -> Iterator[Found]:
    """Find tokens by their form, private keys, passwords of URLs, and random strings that are called a secret."""
    for rule, word, pattern in COMPILED:
        if word in text:
            for match in pattern.finditer(text):
                if _is_token(rule, match[0]):
                    yield Found(*match.span(), "KEY", rule)
    if "PRIVATE KEY" in text:
        for match in PEM.finditer(text):
            yield Found(*match.span(2), "KEY", "pem")
    if "://" in text and "@" in text:
        for match in URL_PASSWORD.finditer(text):
            if match[1].lower() not in DUMMY:
                yield Found(*match.span(1), "PASSWORD", "url")
    yield from _secrets(text)


def _is_token(rule: str, token: str) -> bool:
    if "EXAMPLE" in token or len(set(token[-16:])) < 6:
        return False
    if rule == "github" and token.startswith("gh") and token[3] == "_":
        return has_github_checksum(token) or is_gibberish(token[4:])
    if rule == "jwt":
        head = token.partition(".")[0]
        try:
            return b'"alg"' in base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
        except (binascii.Error, ValueError):
            return False
    return rule in ("aws", "pypi", "google") or is_gibberish(token.rpartition("_")[2])


def _secrets(text: str) -> Iterator[Found]:
    for pattern, is_named in ((SECRET_NAME, True), (QUOTED, False)):
        for match in pattern.finditer(text):
            value = match[1]
            if _is_random(value, is_named=is_named) and not _is_hash(text, match.start(1), value):
                yield Found(*match.span(1), "KEY", "named" if is_named else "entropy")


def _is_random(value: str, *, is_named: bool) -> bool:
    is_hex = all(c in "0123456789abcdefABCDEF-" for c in value)
    if is_hex:
        return (
            is_named
            and entropy(value) >= MIN_HEX_ENTROPY
            and not UUID.fullmatch(value)
            and not value.isdigit()
        )
    kinds = [any(map(test, value)) for test in (str.isdigit, str.isupper, str.islower)]
    if sum(kinds) < (2 if is_named else 3) or not kinds[0]:
        return False
    digits = sum(map(str.isdigit, value))
    if not is_named and (
        digits < 3 or value.count("/") > 3 or value.count("_") + value.count("-") > 3
    ):
        return False
    bits = entropy(value)
    least = min(MIN_ENTROPY, math.log2(len(value)) * 0.85)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" in value.upper() or "0123456789" in value
    return bits >= least and not alphabet and is_gibberish(value)


def _is_hash(text: str, place: int, value: str) -> bool:
    """Tell a digest by what stands before it on its line."""
    line = text[max(text.rfind("\n", 0, place) + 1, place - 100) : place]
    return bool(HASHES.search(line)) or bool(HASHES.match(value))


RULES: tuple[Callable[[str], Iterator[Found]], ...] = (keys, emails, addresses)


def find_all(text: str) -> list[Found]:
    """Give what all rules find, in order, none over another: the one that begins first counts, of these the longest."""
    found: list[Found] = []
    for item in sorted(
        {item for rule in RULES for item in rule(text)}, key=lambda item: (item[0], -item[1])
    ):
        if not found or item.begin >= found[-1].end:
            found.append(item)
    return found
