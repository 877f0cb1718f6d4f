"""Programs that lie, break out or never end: none passes, none survives, none leaves a trace."""

import dataclasses
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron.errors import ConfigError
from megatron.evaluation.isolation import sandbox as evaluation_sandbox
from megatron.evaluation.isolation.sandbox import Sandbox
from megatron.evaluation.isolation.trial import Limits, Trial, Verdict
from tests.process_end import have_ended

ATTACKS = sorted((Path(__file__).parent / "attacks").glob("*.py"))
# An attack that wants something returns 42 if it gets it; one that lies does not know the number.
TRIAL = Trial("", "", "assert solve(3) == 42\n", ("solve",))
NUM_IDLE = 5  # the worker, what forks, and the three that wait for the next trial
HONEST = "def solve(number):\n    return 14 * number\n"


def make_sandbox(limits: Limits) -> Sandbox:
    try:
        return Sandbox(limits)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with make_sandbox(Limits()) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def strict() -> Iterator[Sandbox]:
    limits = Limits(wall_seconds=0.8, cpu_seconds=1, memory=512 << 20)
    with make_sandbox(limits) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def limited() -> Iterator[Sandbox]:
    with make_sandbox(Limits(wall_seconds=300, cpu_seconds=60, memory=256 << 20)) as sandbox:
        yield sandbox


def run(sandbox: Sandbox, program: str, **changes: object) -> Verdict:
    return sandbox.run(dataclasses.replace(TRIAL, program=program, **changes))


def members(sandbox: Sandbox) -> list[int]:
    """The worker and the processes below it: one that loses its parent gets the pid 1 of its namespace as another."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
    found = [sandbox._process.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


@pytest.mark.parametrize("path", ATTACKS, ids=lambda path: path.stem)
def test_attack_neither_passes_nor_leaves_a_trace(
    path: Path, strict: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "secret").write_text("42")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = path.read_text().replace("@OUTSIDE@", str(tmp_path))
        program = program.replace("@PORT@", str(server.getsockname()[1]))
        verdicts = [run(strict, program)]
        if path.stem == "leave_a_file":
            verdicts.append(run(strict, program))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not any(verdict.is_passed for verdict in verdicts), verdicts
    assert verdicts[0].outcome != "unsupported", verdicts
    assert len(members(strict)) == NUM_IDLE, "processes survive"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("name", ["memory_of_many", "socket_buffers"])
def test_memory_is_bounded_for_all_processes_together(limited: Sandbox, name: str) -> None:
    program = (Path(__file__).parent / "attacks" / f"{name}.py").read_text()
    assert run(limited, program).outcome == "memory"
    assert len(members(limited)) == NUM_IDLE


def test_processes_that_stay_below_the_limit_together_are_left_alone(limited: Sandbox) -> None:
    # each holds its memory until all do; in sum two thirds of what they may
    program = """
import os
def solve(number):
    ready, done = os.pipe(), os.pipe()
    for _ in range(4):
        if os.fork() == 0:
            os.close(done[1])
            held = bytearray(42 << 20)
            held[::4096] = b"x" * len(held[::4096])
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
    for _ in range(4):
        os.read(ready[0], 1)
    import time
    time.sleep(0.1)
    os.close(done[1])
    return 42
"""
    verdict = run(limited, program)
    assert verdict.is_passed, verdict


@pytest.mark.parametrize("name", ["kill_everything", "memory_of_many", "daemon"])
def test_what_waits_for_the_next_trial_is_out_of_reach(limited: Sandbox, name: str) -> None:
    waiting = members(limited)[2:]
    run(limited, HONEST)
    assert not set(waiting) & set(members(limited)), "a side served twice"
    run(limited, (Path(__file__).parent / "attacks" / f"{name}.py").read_text())
    verdict = run(limited, HONEST)
    assert verdict.is_passed, verdict


def test_there_are_thirty_attacks() -> None:
    assert len(ATTACKS) >= 30


# Where isolation is what stops them, they must be real: outside of it these succeed.
@pytest.mark.parametrize(
    "name", ["read_secrets", "network", "write_outside", "symbolic_link", "leave_a_file"]
)
def test_attack_succeeds_without_isolation(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("42")
    program = (Path(__file__).parent / "attacks" / f"{name}.py").read_text()
    program = program.replace("/tmp/", f"{tmp_path}/").replace("@OUTSIDE@", str(tmp_path))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Sandbox(Limits(), is_isolated=False) as sandbox,
    ):
        program = program.replace("@PORT@", str(server.getsockname()[1]))
        verdicts = [run(sandbox, program) for _ in range(2)]
    assert any(verdict.is_passed for verdict in verdicts), verdicts


def test_honest_program_passes_and_wrong_one_does_not(sandbox: Sandbox) -> None:
    assert run(sandbox, HONEST).is_passed
    assert run(sandbox, HONEST.replace("*", "+")).outcome == "wrong"


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("def solve(number)\n", "syntax"),
        ("def solve(number):\n    return 1 / 0\n", "error"),
        ("import os\nos._exit(0)\n", "exited"),
        ("def solve(number):\n    return object()\n", "no-plain-value"),
        ("", "error"),
    ],
)
def test_outcome_says_how_it_ended(sandbox: Sandbox, program: str, outcome: str) -> None:
    assert run(sandbox, program).outcome == outcome


def test_timeouts_of_processor_and_of_clock_are_told_apart() -> None:
    sleeps = "import time\ndef solve(number):\n    time.sleep(100)\n"
    spins = "def solve(number):\n    while True: pass\n"
    with make_sandbox(Limits(wall_seconds=1)) as sandbox:
        assert run(sandbox, sleeps).outcome == "timeout-wall"
    with make_sandbox(Limits(wall_seconds=300, cpu_seconds=1)) as sandbox:
        assert run(sandbox, spins).outcome == "timeout-cpu"


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-7", "2**200", "1.5", "float('inf')", "'\\ud800\\0é'", "b'\\xff'", "1+2j",
        "[1, (2, 3), {4}]", "{(1, 2): [None], 'a': {}}", "frozenset({1})", "()", "-0.0", "bytearray(b'x')",
    ],
)  # fmt: skip
def test_values_cross_both_ways_with_their_types(sandbox: Sandbox, value: str) -> None:
    tests = f"sent = {value}\ngiven = solve(sent)\nassert repr(given) == repr(sent), repr(given)\n"
    tests += "assert type(given) is type(sent)\n"
    assert run(sandbox, "def solve(value):\n    return value\n", tests=tests).is_passed


def test_subclasses_of_builtins_are_judged_by_their_content(sandbox: Sandbox) -> None:
    program = "from collections import Counter\ndef solve(text):\n    return Counter(text)\n"
    verdict = run(sandbox, program, tests="assert solve('aab') == {'a': 2, 'b': 1}\n")
    assert verdict.is_passed


def test_exceptions_of_the_candidate_reach_the_tests(sandbox: Sandbox) -> None:
    tests = "try:\n    solve(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False\n"
    assert run(sandbox, "def solve(number):\n    return 1 // number\n", tests=tests).is_passed


def test_tests_that_swallow_everything_pass_nothing(sandbox: Sandbox) -> None:
    tests = "try:\n    solve(0)\nexcept BaseException:\n    pass\n"
    assert (
        run(sandbox, "import os\ndef solve(x):\n    os._exit(0)\n", tests=tests).outcome == "exited"
    )


def test_tests_without_a_call_pass_nothing(sandbox: Sandbox) -> None:
    assert run(sandbox, HONEST, tests="assert True\n").outcome == "unsupported"


def test_kernel_chooses_from_the_worker_if_memory_runs_out(sandbox: Sandbox) -> None:
    found = [Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in members(sandbox)]
    assert found == ["1000"] * NUM_IDLE


def test_a_machine_on_which_what_is_right_does_not_pass_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_sandbox(Limits()).close()
    monkeypatch.setattr(evaluation_sandbox, "PROBE", dataclasses.replace(TRIAL, program=HONEST, tests="solve(0 / 0)"))  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"isolated \(error: ZeroDivisionError: .*allow user namespaces"
    ):
        Sandbox(Limits())


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_trial_that_runs_ends_with_the_parent(is_isolated: bool) -> None:
    if is_isolated:
        make_sandbox(Limits()).close()
    sandbox = Sandbox(Limits(wall_seconds=300, cpu_seconds=300), is_isolated=is_isolated)
    program = "import os\ndef solve(number):\n    os.fork()\n    while True: pass\n"
    with ThreadPoolExecutor(1) as executor:
        trial = executor.submit(run, sandbox, program)
        wanted = NUM_IDLE + (4 if is_isolated else 1)  # no init where there are no namespaces
        while len(running := members(sandbox)) < wanted and not trial.done():
            pass
        sandbox._control.shutdown(socket.SHUT_RDWR)  # as the kernel does if the parent dies
        assert trial.exception() is not None
    sandbox.close()
    assert len(running) == wanted
    assert have_ended(running)


def test_worker_ends_with_its_parent_side() -> None:
    sandbox = make_sandbox(Limits())
    run(sandbox, HONEST)
    sandbox.close()
    assert sandbox._process.returncode is not None
