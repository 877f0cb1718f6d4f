"""Personal data that rules can tell: e-mail, IP addresses, and with keys.py keys and passwords (StarCoder §4).

One pass over the bytes gives the places that are looked at, so that most of a text costs no more. Names and user names
need a model. Knows nothing of what is done with what is found.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from megatron.curation.pii.keys import BY_PREFIX, GUESSES, keys
from megatron.curation.pii.scan import IPV4 as IPV4_PLACE
from megatron.curation.pii.scan import IPV6 as IPV6_PLACE
from megatron.curation.pii.scan import Found, Place, Scanner

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
# of a line in small letters
VERSION_BEFORE = re.compile(
    r"(?:version|ver|release|build|rev|oid|section|[=<>~!]=|~>|[a-z]-|\bv)[\s\"':=(\[]*$"
    r"|[\s(\[,][\"'](?:=|<|>|~>|\^)\s+$"  # "= 6.1.7.10", as gems state what they need
)
SERVER = re.compile(r"dns|server|host|address|\bip")
OIDS = ("1.2.840", "1.3.6.1", "2.5.4.", "2.5.29.")
_PUBLIC_DNS = (
    "8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 8.26.56.26 8.20.247.20 "
    "94.140.14.14 94.140.15.15 76.76.19.19 76.223.122.150 2001:4860:4860::8888 2001:4860:4860::8844"
)
PUBLIC_DNS = frozenset(_PUBLIC_DNS.split())
NUMBERS = frozenset(map(str, range(256)))  # of an IPv4 address
_SPECIAL = "0 10 100 127 169 172 192 198 203"  # first numbers of networks that are not for all
ORDINARY = frozenset(map(str, range(224))) - frozenset(_SPECIAL.split())


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
    if text[head.start() - 1 : head.start()] in ("/", "@", "#", "$") or name[-1] in ".%":
        return False
    if name == "git" or (
        text[tail.end() : tail.end() + 1] == ":" and text[tail.end() + 1 : tail.end() + 2].isalnum()
    ):
        return False  # git@github.com:owner/repository
    is_top = top in TLDS or (len(top) == 2 and top not in NO_COUNTRY)
    return is_top and not EXAMPLE_DOMAIN.search(tail[1])


def addresses(text: str, places: Sequence[Place]) -> Iterator[Found]:
    """Find public IP addresses that are no versions, object identifiers or well-known resolvers."""
    for kind, begin, _ in places:
        if kind == IPV4_PLACE:
            match = IPV4.match(text, begin)
            if match and is_public(match[0]) and not _is_version(text, match):
                yield Found(*match.span(), "IP_ADDRESS", "ipv4")
        elif kind == IPV6_PLACE:
            match = IPV6.match(text, begin)
            # One number, as 2002::, is of a plan of networks, or of RFC 3501.
            if match and len(match[0]) > len("2002::") and is_public(match[0]):
                yield Found(*match.span(), "IP_ADDRESS", "ipv6")


def is_public(address: str) -> bool:
    """Tell an address that names somebody's machine to all, and is no well-known resolver's."""
    first, *others = address.split(".")
    if first in ORDINARY and len(others) == 3:
        return NUMBERS.issuperset(others) and address not in PUBLIC_DNS
    try:
        is_new = ":" in address
        found = ipaddress.IPv6Address(address) if is_new else ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast and address not in PUBLIC_DNS


def _is_version(text: str, match: re.Match[str]) -> bool:
    near = max(match.start() - 40, 0)
    line = text[max(text.rfind("\n", near, match.start()) + 1, near) : match.start()]
    if match[0].startswith(OIDS) or VERSION_BEFORE.search(line.lower()):
        return True
    around = text[max(match.start() - 100, 0) : match.end() + 100]
    return len(match[0]) == 7 and not SERVER.search(around.lower())


@functools.cache
def _scanner() -> Scanner:
    return Scanner(list(BY_PREFIX))


def find_all(text: str) -> list[Found]:
    """Give what all rules find, in order, none over another: the one that begins first counts, of these the longest."""
    places = _scanner().find(text)
    return first_of({*keys(text, places), *emails(text), *addresses(text, places)})


def first_of(items: Iterable[Found]) -> list[Found]:
    """Give finds in order, none over another: what begins first counts, then the longest, then what knows its form."""
    found: list[Found] = []
    for item in sorted(items, key=lambda i: (i.begin, -i.end, i.rule in GUESSES, i.rule)):
        if not found or item.begin >= found[-1].end:
            found.append(item)
    return found
