import io
import sys

import pytest

from megatron.progress import counted, progress_bar


@pytest.fixture
def now(monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr("megatron.progress.time.monotonic", lambda: seconds[0])
    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    return seconds


def lines_of(log: str) -> list[str]:
    """Give what lines say, without the time of day and how long it took."""
    assert "\r" not in log
    return [line.split(" ", 1)[1].split(" in ")[0] for line in log.splitlines()]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_bar_counts_bytes_on_a_terminal_and_is_silent_in_a_log_of_short_work(
    monkeypatch, is_terminal
):
    log = io.StringIO()
    log.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(2_000_000, "verify") as bar:
        bar.update(1_500_000)
    if is_terminal:
        assert "verify" in log.getvalue() and "1.50M/2.00M" in log.getvalue()
    else:
        assert log.getvalue() == ""


def test_a_log_is_told_now_and_then_of_work_that_takes_long(capsys, now):
    with progress_bar(2_000_000, "filter") as bar:
        for _ in range(100):
            now[0] += 1
            bar.update(20_000)
    assert lines_of(capsys.readouterr().err) == [
        f"filter: {percent}% of 2.00MB" for percent in (30, 60, 90)
    ]


def test_a_log_is_told_of_slow_work_behind_much_that_was_fast(capsys, now):
    def items():
        for number in range(1200):
            now[0] += 0.001 if number < 1000 else 10
            yield number

    assert list(counted(items(), "score", "sample", 1200)) == list(range(1200))
    lines = lines_of(capsys.readouterr().err)
    assert len(lines) == 66 and lines[0] == "score: 84% of 1200 samples"


def test_a_total_may_be_known_later_and_others_than_the_first_process_are_silent(capsys, now):
    for is_silent in (False, True):
        with progress_bar(None, "train", "step", is_silent=is_silent) as bar:
            bar.total = 10
            for _ in range(5):
                now[0] += 20
                bar.update()
    assert lines_of(capsys.readouterr().err) == ["train: 20% of 10 steps", "train: 40% of 10 steps"]
