"""tools/launch.py: how a launch ends, by what its processes ended with, and by the signals it gets."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.forked import LIMIT_SECONDS, Forked, run_forked
from tests.process_end import have_ended
from tests.world import launcher_environment
from tools.launch import parse

TOOL = Path(__file__).parents[2] / "tools" / "launch.py"


def start(script: Path, *options: str) -> Forked:
    return Forked(TOOL, *options, script)


def launch(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run_forked(TOOL, "--standalone", *options, script)


def write_script(folder: Path, body: str) -> Path:
    """Write a script that knows its rank, and the try it belongs to; a try leaves a file for each process."""
    path = folder / "script.py"
    path.write_text(
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "rank, tried = int(os.environ['RANK']), int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        f"folder = Path({str(folder)!r})\n"
        "def begin():\n"
        "    (folder / f'try{tried}_rank{rank}').write_text(str(os.getpid()))\n"
        + textwrap.dedent(body)
    )
    return path


def tries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("try*"))


def wait_for(folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while len([path for path in folder.glob(pattern) if path.read_text()]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("code", [0, 2, 75])
def test_an_expected_end_is_silent_keeps_its_code_and_restarts_nothing(
    tmp_path: Path, code: int
) -> None:
    body = f"begin()\nprint('said why', file=sys.stderr)\nsys.exit({code})\n"
    script = write_script(tmp_path, body)
    result = launch(script, "--nproc-per-node", "2", "--max-restarts", "2")
    assert result.returncode == code
    assert result.stderr.count("said why") >= 1
    assert result.stderr.replace("said why", "").strip() == ""
    assert {name[:4] for name in tries(tmp_path)} == {"try0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nproc-per-node", "many"), "nproc_per_node value: many"),
        (("--nproc-per-node", "0"), "--nproc-per-node 0"),
        (("--nnodes", "a:b"), "'a'"),
    ],
)
def test_a_wrong_option_of_torchrun_is_one_line(
    options: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch.py", *options, "script.py"])
    with pytest.raises(SystemExit) as left:
        parse(str(tmp_path))
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("code", [0, 1])
def test_a_launch_leaves_no_temporary_files(tmp_path: Path, code: int) -> None:
    body = f"""
    (folder / "error").write_text(os.environ["TORCHELASTIC_ERROR_FILE"])
    sys.exit({code})
    """
    launch(write_script(tmp_path, body), "--nproc-per-node", "1")
    scratch = Path((tmp_path / "error").read_text()).parents[3]
    assert scratch.name.startswith("launch_") and not scratch.exists()


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("5", "5")])
def test_processes_share_the_cores_and_torchrun_has_nothing_to_warn_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    given: str | None,
    threads: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # for what it was to come back
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.setattr(sys, "argv", ["launch.py", "--nproc-per-node", "2", "script.py"])
    parse(str(tmp_path))
    assert os.environ["OMP_NUM_THREADS"] == threads and not caplog.records


def test_processes_that_start_again_meet_in_an_empty_store(tmp_path: Path) -> None:
    body = """
    import torch.distributed as dist
    store, *_ = next(dist.rendezvous("env://"))
    (folder / f"met{tried}").write_text(str(store.add("met", 1)))
    sys.exit(1 if tried == 0 else 0)
    """
    result = launch(write_script(tmp_path, body), "--nproc-per-node", "1", "--max-restarts", "1")
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / f"met{tried}").read_text() for tried in (0, 1)] == ["1", "1"]


def test_help_begins_with_examples_and_a_mistake_is_one_line() -> None:
    shown = run_forked(TOOL, "--help").stdout
    assert shown.count("python tools/launch.py") >= 2
    assert shown.index("examples:") < shown.index("--rdzv-endpoint RDZV_ENDPOINT")
    result = run_forked(TOOL)
    assert result.returncode == 2
    assert result.stderr.startswith("launch.py: error: ") and result.stderr.count("\n") == 1


def test_a_crash_ends_with_the_line_of_who_failed_behind_its_own_traceback(tmp_path: Path) -> None:
    script = write_script(tmp_path, "raise RuntimeError('a bug')")
    result = subprocess.run(
        [sys.executable, str(TOOL), "--standalone", str(script)],
        capture_output=True,
        text=True,
        env=launcher_environment() | {"OMP_NUM_THREADS": "1"},  # else torchrun tells of its choice
        timeout=LIMIT_SECONDS,
    )
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    *_, error, last = result.stderr.splitlines()
    assert error == "RuntimeError: a bug"
    assert re.fullmatch(
        r"launch.py: rank 0 on \S+ ended with exit code 1; see --max-restarts", last
    )


def test_a_hang_that_the_watchdog_ended_keeps_its_code(tmp_path: Path) -> None:
    result = launch(write_script(tmp_path, "sys.exit(124)"))
    assert result.returncode == 124
    assert result.stderr.count("\n") == 1 and "held it up" in result.stderr


def test_a_killed_process_is_restarted_and_the_new_ones_know_why(tmp_path: Path) -> None:
    body = """
        begin()
        print(os.environ.get('LAUNCH_RESTART'))
        while not (folder / f'try{tried}_rank0').exists():
            time.sleep(0.02)
        if tried == 0 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if tried == 0:
            time.sleep(1000)
    """
    result = launch(write_script(tmp_path, body), "--nproc-per-node", "2", "--max-restarts", "2")
    assert result.returncode == 0, result.stderr
    why = f"rank 1 on {socket.gethostname()} was killed by SIGKILL"
    assert result.stderr == f"launch.py: {why}; restart 1 of 2\n"
    assert result.stdout.count(f"restart 1 of 2: {why}") == 2
    assert len(tries(tmp_path)) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_handed_on_once_and_nothing_is_restarted(
    tmp_path: Path, number: signal.Signals
) -> None:
    handed_on = signal.SIGTERM if number == signal.SIGHUP else number
    body = f"""
        got = []
        signal.signal({int(handed_on)}, lambda *_: got.append(1))
        begin()
        while not got:
            time.sleep(0.05)
        time.sleep(0.3)  # the launcher waits for who saves
        sys.stdout.write(f'signals: {{len(got)}}\\n')  # in one piece, as others write too
        sys.exit(75)
    """
    process = start(
        write_script(tmp_path, body),
        *("--standalone", "--nproc-per-node", "2", "--max-restarts", "2"),
    )
    wait_for(tmp_path, "try0*", 2)
    process.send_signal(number)
    process.send_signal(number)  # as from a terminal and from the script above
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (75, "")
    assert "signals: 1" in stdout and len(tries(tmp_path)) == 2


def test_a_crash_while_asked_to_leave_is_told_and_restarts_nothing(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: os.abort())\nbegin()\ntime.sleep(1000)\n"
    process = start(write_script(tmp_path, body), "--standalone", "--max-restarts", "2")
    wait_for(tmp_path, "try0*", 1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert "SIGABRT" in stderr and len(tries(tmp_path)) == 1


def test_a_second_signal_ends_processes_that_do_not_leave(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nbegin()\ntime.sleep(1000)\n"
    process = start(write_script(tmp_path, body), "--standalone", "--max-restarts", "2")
    wait_for(tmp_path, "try0*", 1)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert have_ended([int((tmp_path / "try0_rank0").read_text())])


def test_processes_that_stay_too_long_are_killed(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nbegin()\ntime.sleep(1000)\n"
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    process = Forked(TOOL, "--standalone", write_script(tmp_path, body), environment=environment)
    wait_for(tmp_path, "try0*", 1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert "did not leave in 1 s" in stderr and "SIGKILL" in stderr


def test_a_taken_port_is_named_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(
            write_script(tmp_path, "begin()"),
            *("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "a"),
            *("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", "is_host=1"),
        )
        _, stderr = process.communicate()
    assert process.returncode == 2
    assert f"port {port} of this node is taken" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def nodes(folder: Path, script: Path, *options: str) -> list[Forked]:
    """Start two launchers that meet through a file, as on two nodes."""
    meeting = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "a")
    where = ("--rdzv-endpoint", str(folder / "meeting"), "--rdzv-conf", "store_type=file")
    return [start(script, *meeting, *where, *options) for _ in range(2)]


def test_a_crash_on_one_node_restarts_and_counts_on_all(tmp_path: Path) -> None:
    body = """
        begin()
        while not (folder / f'try{tried}_rank0').exists():
            time.sleep(0.02)
        if rank == 1:
            sys.exit(70 + tried)
        time.sleep(1000)  # nobody waits for that
    """
    launchers = nodes(tmp_path, write_script(tmp_path, body), "--max-restarts", "1")
    results = [process.communicate() for process in launchers]
    assert [process.returncode for process in launchers] == [1, 1]
    assert len(tries(tmp_path)) == 4
    for _, stderr in results:
        assert f"rank 1 on {socket.gethostname()} ended with exit code 71; all restarts" in stderr


@pytest.mark.parametrize("code", [2, 75])
def test_a_quiet_end_on_one_node_ends_all_with_its_code(tmp_path: Path, code: int) -> None:
    body = f"""
        begin()
        if rank == 1:
            while len(list(folder.glob('try*'))) < 2:
                time.sleep(0.05)
            sys.exit({code})
        time.sleep({0 if code == 75 else 1000})
        sys.exit({code})
    """
    launchers = nodes(tmp_path, write_script(tmp_path, body), "--max-restarts", "3")
    results = [process.communicate() for process in launchers]
    assert [process.returncode for process in launchers] == [code, code]
    assert [stderr for _, stderr in results] == ["", ""]
    assert len(tries(tmp_path)) == 2
