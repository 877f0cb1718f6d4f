import io
import sys

from megatron.progress import byte_bar


def told(monkeypatch, *, is_terminal: bool) -> str:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with byte_bar(2_000_000, "verify") as bar:
        bar.update(1_500_000)
    return stream.getvalue()


def test_a_bar_counts_bytes_on_a_terminal_and_is_silent_in_a_log(monkeypatch):
    assert told(monkeypatch, is_terminal=False) == ""
    shown = told(monkeypatch, is_terminal=True)
    assert "verify" in shown and "1.50M/2.00M" in shown


def test_a_log_is_told_now_and_then_of_work_that_takes_long(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("megatron.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with byte_bar(2_000_000, "filter") as bar:
        for _ in range(100):
            now[0] += 1
            bar.update(20_000)
            bar.refresh()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and "\r" not in stream.getvalue()
    assert [line.split(" ", 1)[1].split(" in ")[0] for line in lines] == [
        "filter: 30% of 2.00MB",
        "filter: 60% of 2.00MB",
        "filter: 90% of 2.00MB",
    ]
