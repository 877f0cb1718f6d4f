"""What NCCL did last, beside the stacks of a run that hangs."""

import torch

from megatron.training.watchdog.flight_recorder import write_flight_record

RECORDER = "_dump_nccl_trace_json"


def test_what_torch_recorded_is_written_as_it_gives_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C._distributed_c10d, RECORDER, lambda **_: b"{}", raising=False)
    write_flight_record(tmp_path / "nccl_rank_00000.json")
    assert (tmp_path / "nccl_rank_00000.json").read_bytes() == b"{}"


def test_a_torch_without_a_recorder_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delattr(torch._C._distributed_c10d, RECORDER, raising=False)
    with caplog.at_level("INFO", "megatron"):
        write_flight_record(tmp_path / "nccl_rank_00000.json")
    assert not list(tmp_path.iterdir())
    assert "there is no nccl_rank_00000.json" in caplog.text
