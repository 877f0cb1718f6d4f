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
