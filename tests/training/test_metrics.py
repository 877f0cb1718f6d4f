"""metrics.jsonl, its resume, and the numbers in it."""

import errno
import json
import math
from pathlib import Path
from unittest import mock

import pytest

from megatron.config import Config
from megatron.data.consumption import Consumption
from megatron.model.flops import FlopsPerToken
from megatron.options import CheckpointConfig
from megatron.training.metrics import MetricsWriter, format_duration, truncate_metrics
from megatron.training.run_state import Interval
from megatron.training.throughput import Clock, Throughput, peak_flops

LINE = {
    "consumed_samples": 8,
    "consumed_tokens": 64,
    "lm_loss": 2.0,
    "grad_norm": math.inf,
    "learning_rate": 1e-3,
    "step_time_s": 0.5,
    "tokens_per_second": 128.0,
    "mfu_full": None,
    "skipped": 1,
}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_and_torn_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"iterat')
    truncate_metrics(path, 2)
    assert [line["iteration"] for line in _lines(path)] == [1, 2]


def test_a_damaged_line_goes_and_the_others_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 1}\n{"iter\xe1tion": 2}\n[2]\n{"iteration": 3}\n')
    truncate_metrics(path, 3)
    assert [line["iteration"] for line in _lines(path)] == [1, 3]


def test_a_disk_that_is_full_at_the_start_takes_numbers_and_not_the_run(tmp_path, caplog):
    config = Config(checkpoint=CheckpointConfig(save=str(tmp_path)))
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n')
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch("os.fsync", side_effect=full),
        mock.patch("torch.utils.tensorboard.SummaryWriter", side_effect=full),
    ):
        writer = MetricsWriter(config, start_iteration=1)
    writer.training({"iteration": 2, **LINE}, total_iterations=5, usual_step_seconds=0.5)
    writer.close()
    assert [line["iteration"] for line in _lines(path)] == [1, 2]
    assert caplog.text.count("goes on without") == 2


def test_a_missing_metrics_file_is_no_error(tmp_path):
    truncate_metrics(tmp_path / "metrics.jsonl", 2)
    assert list(tmp_path.iterdir()) == []


def test_writer_continues_a_resumed_run_and_writes_json_only(tmp_path):
    config = Config(checkpoint=CheckpointConfig(save=str(tmp_path)))
    writer = MetricsWriter(config, start_iteration=0)
    for iteration in (1, 2, 3):
        writer.training(
            {"iteration": iteration, **LINE}, total_iterations=5, usual_step_seconds=0.5
        )
    writer.close()
    writer = MetricsWriter(config, start_iteration=2)
    writer.validation(2, {"python": 1.0})
    writer.close()
    lines = _lines(tmp_path / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 2]
    assert lines[0]["grad_norm"] is None
    assert lines[2] == {
        "iteration": 2,
        "validation": "python",
        "lm_loss": 1.0,
        "ppl": pytest.approx(math.e),
    }
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_fresh_run_starts_its_file_anew(tmp_path):
    config = Config(checkpoint=CheckpointConfig(save=str(tmp_path)))
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    MetricsWriter(config, start_iteration=0).close()
    assert _lines(tmp_path / "metrics.jsonl") == []


def test_interval_means_over_finite_losses():
    interval = Interval()
    interval.add(1.0, is_skipped=False)
    interval.add(math.nan, is_skipped=True)
    interval.add(3.0, is_skipped=False)
    assert (interval.mean_loss, interval.num_skipped, interval.num_steps) == (2.0, 1, 3)


def test_throughput_counts_each_gpu():
    flops = FlopsPerToken(linear=4e9, head=2e9, attention_full=4e9, attention_causal=2e9)
    throughput = Throughput(2, flops, peak_flops("NVIDIA H200", "bfloat16"))
    fields = throughput.fields(1000, 0.1, 1.0)
    assert fields["tokens_per_second"] == 10000
    assert fields["tokens_per_second_per_gpu"] == 5000
    assert fields["tflops_per_gpu_full"] == pytest.approx(50.0)
    assert fields["mfu_causal"] == pytest.approx(40e12 / 989e12)
    masked = throughput.fields(1000, 0.1, 0.25)  # a quarter of the pairs lies within one document
    assert masked["tflops_per_gpu_full"] == fields["tflops_per_gpu_full"]
    assert masked["tflops_per_gpu_causal"] == pytest.approx(32.5)
    unknown = Throughput(1, flops, peak_flops("cpu", "bfloat16"))
    assert unknown.fields(1, 1.0, 1.0)["mfu_full"] is None


def test_clock_weighs_the_share_of_attention_by_tokens():
    clock = Clock()
    clock.count(300, 0.5)
    clock.count(100, 0.1)
    assert (clock.tokens, clock.num_steps) == (400, 2)
    assert clock.attention_share == pytest.approx(0.4)


def test_an_eta_leaves_a_process_s_first_step_out(monkeypatch):
    now = 0.0  # the first step takes 60 s, two more 2 s each
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock()
    clock.start()
    now = 60.0
    clock.end_warm_up()
    clock.count(100, 1.0)
    assert clock.usual_step_seconds is None
    for _ in range(2):
        now += 2.0
        clock.count(100, 1.0)
    clock.pause()
    assert (clock.seconds, clock.usual_step_seconds) == (64.0, 2.0)


@pytest.mark.parametrize(
    ("iteration", "seconds", "eta"),
    [(1, None, "with the next line"), (2, 2.0, "6s"), (5, None, "0s")],
)
def test_an_eta_is_told_of_usual_steps_only(caplog, iteration, seconds, eta):
    writer = MetricsWriter(Config(), start_iteration=0)
    with caplog.at_level("INFO", "megatron"):
        writer.training(
            {"iteration": iteration, **LINE}, total_iterations=5, usual_step_seconds=seconds
        )
    writer.close()
    assert caplog.messages[-1].endswith(f" | ETA {eta}")


def test_read_of_each_source_is_a_line_that_says_so(tmp_path):
    config = Config(checkpoint=CheckpointConfig(save=str(tmp_path)))
    writer = MetricsWriter(config, start_iteration=0)
    writer.sources(4, [Consumption("train/python", 6, 384, 0.75)])
    writer.sources(4, [])
    writer.close()
    assert _lines(tmp_path / "metrics.jsonl") == [
        {
            "iteration": 4,
            "source": "train/python",
            "samples": 6,
            "tokens": 384,
            "epochs": 0.75,
        }
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.6, "1m00s"),
        (125, "2m05s"),
        (7620, "2h07m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_takes_numbers_and_not_the_run(tmp_path, caplog):
    config = Config(checkpoint=CheckpointConfig(save=str(tmp_path)))
    writer = MetricsWriter(config, start_iteration=0)
    writer._file.close()
    writer._file = open("/dev/full", "w")  # noqa: SIM115 - the writer closes it
    writer.training({"iteration": 1, **LINE}, total_iterations=5, usual_step_seconds=0.5)
    writer.close()
    said = [record.message for record in caplog.records if "metrics.jsonl" in record.message]
    assert said and "No space left" in said[0] and "goes on" in said[0]
