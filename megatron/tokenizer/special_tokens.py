"""The sentinels of StarCoder's vocabulary, in the order of their ids (StarCoder §5.1, §5.3)."""

from __future__ import annotations

EOD = "<|endoftext|>"
FIM_PREFIX = "<fim_prefix>"
FIM_MIDDLE = "<fim_middle>"
FIM_SUFFIX = "<fim_suffix>"
FIM_PAD = "<fim_pad>"
FIM_TOKENS = (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, FIM_PAD)

# Ids 0 to 18. PII placeholders (<NAME>, <EMAIL>, <KEY>, <PASSWORD>) are plain text, not sentinels.
STARCODER_SPECIAL_TOKENS = (
    EOD,
    *FIM_TOKENS,
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
)
