"""Where a thread stands: also at a moment when Python has no line for it."""

from types import SimpleNamespace

from megatron.training.stack import collective, is_waiting


def test_a_frame_without_a_line_does_not_wait() -> None:
    # What another thread may see of a frame between two lines (Python 3.11). The watch would end with an error here.
    frame = SimpleNamespace(f_code=SimpleNamespace(co_filename=__file__), f_lineno=None)
    assert not is_waiting(frame)
    assert collective(frame) is None
