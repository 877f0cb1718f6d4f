"""Published results to show beside one's own: pass@1 in %, of benchmark, then group ("" for all), then model."""

from __future__ import annotations

from collections.abc import Mapping

# HumanEval and MBPP: StarCoder §6.1.1. MultiPL-E: StarCoder, StarCoderBase and its smaller ones as on the leaderboard of
# the models' authors (50 samples at 0.2); for C#, Go, Perl, Scala, Bash and TypeScript the card of StarCoder. DS-1000: its
# card, too.
PAPER: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "humaneval": {
        "": {
            "LLaMA-7B": 10.5, "LLaMA-65B": 23.7, "CodeGen-16B-Multi": 18.3, "CodeGen-16B-Mono": 29.3,
            "code-cushman-001": 33.5, "StarCoderBase": 30.4, "StarCoder": 33.6, "StarCoder, prompted": 40.8,
        },
    },
    "mbpp": {
        "": {
            "LLaMA-7B": 17.7, "LLaMA-65B": 37.7, "CodeGen-16B-Multi": 20.9, "CodeGen-16B-Mono": 35.3,
            "code-cushman-001": 45.9, "StarCoderBase": 49.0, "StarCoder": 52.7, "StarCoder, prompted": 49.5,
        },
    },
    "multipl-e": {
        "py": {"StarCoder": 33.57, "StarCoderBase": 30.35, "7B": 28.37, "3B": 21.50, "1B": 15.17},
        "java": {"StarCoder": 30.22, "StarCoderBase": 28.53, "7B": 24.44, "3B": 19.25, "1B": 14.20},
        "js": {"StarCoder": 30.79, "StarCoderBase": 31.70, "7B": 27.35, "3B": 21.32, "1B": 13.38},
        "cpp": {"StarCoder": 31.55, "StarCoderBase": 30.56, "7B": 23.30, "3B": 19.43, "1B": 11.68},
        "php": {"StarCoder": 26.08, "StarCoderBase": 26.75, "7B": 22.12, "3B": 18.55, "1B": 9.94},
        "jl": {"StarCoder": 23.02, "StarCoderBase": 21.09, "7B": 21.77, "3B": 16.10, "1B": 11.31},
        "d": {"StarCoder": 13.57, "StarCoderBase": 10.01, "7B": 8.10, "3B": 4.97, "1B": 4.65},
        "lua": {"StarCoder": 23.89, "StarCoderBase": 26.61, "7B": 23.35, "3B": 18.04, "1B": 12.52},
        "r": {"StarCoder": 15.50, "StarCoderBase": 10.18, "7B": 14.51, "3B": 10.10, "1B": 5.73},
        "rb": {"StarCoder": 1.24, "StarCoderBase": 17.25, "7B": 18.39, "3B": 3.93, "1B": 0.31},
        "rkt": {"StarCoder": 0.07, "StarCoderBase": 11.77, "7B": 11.08, "3B": 7.87, "1B": 5.03},
        "rs": {"StarCoder": 21.84, "StarCoderBase": 24.46, "7B": 22.60, "3B": 16.32, "1B": 10.24},
        "swift": {"StarCoder": 22.74, "StarCoderBase": 16.74, "7B": 15.10, "3B": 9.98, "1B": 3.92},
        "cs": {"StarCoder": 21.01}, "go": {"StarCoder": 17.61}, "pl": {"StarCoder": 17.34},
        "scala": {"StarCoder": 27.61}, "sh": {"StarCoder": 10.46}, "ts": {"StarCoder": 32.29},
    },
    "ds1000": {"": {"StarCoder, completion": 26.0}},
}  # fmt: skip
