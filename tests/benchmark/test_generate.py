"""bench.py generate compares the texts of both sides before it times them, and names mistakes."""

import argparse

import pytest
import torch.distributed as dist

from megatron.benchmark import generate
from megatron.errors import ConfigError


def parse(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(["--model", "tiny", *args])


def test_both_sides_write_the_same_texts(capsys):
    sizes = ("--batch-sizes", "1", "3", "--prompt-length", "9", "--new-tokens", "5")
    generate.run(parse(*sizes, "--rounds", "1"))
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == [
        "write, tiny in fp32, batch 1",
        "write, tiny in fp32, batch 3",
    ]
    assert "equal texts: 1 of 1" in rows[0][-2] and "equal texts: 3 of 3" in rows[1][-2]
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "args, words",
    [
        (("--rounds", "0"), "start at 1"),
        (("--cpu-time",), "needs --threads 1"),
        (("--prompt-length", "250"), "more than the 256 positions"),
    ],
)
def test_mistakes_are_named(args, words):
    with pytest.raises(ConfigError, match=words):
        generate.run(parse(*args))
