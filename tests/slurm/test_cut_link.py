"""Two hosts, which are network namespaces with a wire between them, and the wire is cut in the middle of a run."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PATIENCE_SECONDS, wait_until
from tests.training.corpus import Corpus
from tests.training.runs import flags_of, read_metrics, train_here
from tests.world import Worlds, launcher_environment

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/pretrain_gpt.py"
NUM_STEPS = 30
ADDRESSES = ("10.213.77.1", "10.213.77.2")
TIMEOUT_SECONDS = 10  # of a collective
# The tool, which does not begin step 21 before there is a file: however long the wire takes to be cut.
HELD = """
import runpy, sys, time
from pathlib import Path
from megatron.training import train
queue_step = train.queue_step

def held(run, *args):
    while run.progress.iteration == 20 and not Path({file!r}).exists():
        time.sleep(0.01)
    return queue_step(run, *args)

train.queue_step = held
sys.argv[0] = "pretrain_gpt.py"
runpy.run_path({tool!r}, run_name="__main__")
"""


def ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, f"ip {' '.join(arguments)}: {result.stderr}"


def inside(host: str) -> list[str]:
    return ["ip", "netns", "exec", host]


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces, a veth pair between them; both ends are called wire."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts on one machine: needs root and iproute2")
    mark = uuid.uuid4().hex[:6]
    names = (f"a{mark}", f"b{mark}")
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode != 0:
        pytest.skip("two hosts on one machine: needs the right to make network namespaces")
    try:
        ip("netns", "add", names[1])
        peer = ("peer", "name", "wire", "netns", names[1])
        ip("link", "add", "wire", "netns", names[0], "type", "veth", *peer)
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "wire", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start(
    hosts: tuple[str, str], tool: Path, flags: str, log: Path
) -> list[subprocess.Popen[bytes]]:
    """Start a launcher on each host; what they say goes to LOG.0 and LOG.1."""
    environment = launcher_environment() | {"GLOO_SOCKET_IFNAME": "wire"}
    environment |= {"PYTHONPATH": str(ROOT)}
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "a"]
    processes = []
    for number, host in enumerate(hosts):
        where = ["--rdzv-endpoint", f"{ADDRESSES[0]}:6000", "--local-addr", ADDRESSES[number]]
        conf = ["--rdzv-conf", f"is_host={1 - number},read_timeout={TIMEOUT_SECONDS}"]
        command = [*inside(host), sys.executable, "tools/launch.py", *meeting, *where, *conf]
        with Path(f"{log}.{number}").open("wb") as output:
            processes.append(
                subprocess.Popen(
                    [*command, str(tool), *flags.split()],
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=output,
                )
            )
    return processes


def told(log: Path) -> str:
    return "".join(Path(f"{log}.{number}").read_text()[-2500:] for number in (0, 1))


def test_a_cut_wire_ends_both_hosts_and_the_same_command_continues_bitwise(
    hosts: tuple[str, str], world: Worlds, corpus: Corpus, tmp_path: Path
) -> None:
    minutes = TIMEOUT_SECONDS / 60
    extra = f"""--train-iters {NUM_STEPS} --global-batch-size 4 --eval-interval {NUM_STEPS}
    --save-interval 10 --distributed-timeout-minutes {minutes}"""
    flags = flags_of(corpus, tmp_path / "cut", extra)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    held, is_cut = tmp_path / "held.py", tmp_path / "is_cut"
    held.write_text(HELD.format(file=str(is_cut), tool=str(TOOL)))
    processes = start(hosts, held, flags, tmp_path / "first")
    try:
        wait_until(
            lambda: metrics.exists() and metrics.read_text().count("grad_norm") > 18,
            "steps",
        )
        ip("-n", hosts[0], "link", "set", "wire", "down")
        is_cut.touch()
        wait_until(
            lambda: all(process.poll() is not None for process in processes),
            "the end of both",
        )
    finally:
        for process in processes:
            process.kill()
    codes = [process.wait() for process in processes]
    assert codes == [1, 1], told(tmp_path / "first")
    ip("-n", hosts[0], "link", "set", "wire", "up")
    processes = start(hosts, TOOL, flags, tmp_path / "second")
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0], told(
        tmp_path / "second"
    )
    world(2).run(train_here, flags_of(corpus, tmp_path / "whole", extra))
    losses = [
        {step: (row["lm_loss"], row["grad_norm"]) for step, row in read_metrics(save)[0].items()}
        for save in (tmp_path / "cut", tmp_path / "whole")
    ]
    assert len(losses[0]) == NUM_STEPS and losses[0] == losses[1]
