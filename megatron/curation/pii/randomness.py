"""How random a word looks: its kinds of characters, how often they change, and how many pairs of letters are English.

Knows nothing of keys.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.curation._pii_scan import Measured, WordMeasure

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
# of random characters' pairs of letters that are common in English; identifiers have more
MAX_COMMON = 0.62


def measured(word: str) -> Measured:
    """Count what tells random characters from words."""
    return _measure().of(word.encode("utf-8", "surrogatepass"))


def unreadable(word: str) -> float:
    """Give the part of what base64 stands for that is no text, 0 for base64 of a text or of a part of one."""
    from megatron.curation._pii_scan import unreadable

    return unreadable(word.encode("utf-8", "surrogatepass"))


def is_gibberish(word: Measured) -> bool:
    """Tell random characters from words: few of their pairs of letters are common ones."""
    others = word.size - 1 - word.pairs
    if others * 3 > word.size * 2:  # digits nearly everywhere: hexadecimal and the like
        return True
    return word.common < MAX_COMMON * word.pairs


@functools.cache
def _measure() -> WordMeasure:
    from megatron.curation._pii_scan import WordMeasure

    return WordMeasure(_BIGRAMS.split())
