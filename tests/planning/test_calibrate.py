"""A machine measured on the CPU: the file that comes of it, and what it was measured with."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.config import Config
from megatron.kernels.documents import Documents
from megatron.model.flops import attended_pairs, num_matrix_parameters
from megatron.options import (
    DataConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainingConfig,
)
from megatron.parallel.launch import Launch
from megatron.planning.calibrate import Device, calibrate, compare, shipped_file_of
from megatron.planning.documents import draw_starts, expected_pairs
from megatron.planning.hardware import read_hardware, write_hardware
from megatron.planning.rates import Bench, _product_calls, products_of
from megatron.planning.stopwatch import FEWEST, MOST, Stopwatch, num_calls
from megatron.training.throughput import peak_flops
from tests.model.tiny import tiny_config

PEAK = 7e13


def _config(tp=1, **changes):
    return Config(
        model=tiny_config(max_position_embeddings=32, **changes),
        parallel=ParallelConfig(tensor_model_parallel_size=tp),
        training=TrainingConfig(micro_batch_size=2),
        data=DataConfig(seq_length=32, reset_attention_mask=True),
    )


def _calibrate(rank, local_world_size):
    launch = Launch(rank, rank % local_world_size, 2, local_world_size)
    return calibrate(
        _config(attention_dropout=0.1),
        launch,
        torch.device("cpu"),
        document_length=5,
        budget=0.1,
        peak_flops=lambda name, dtype: PEAK if dtype == "float32" else None,
    )


@pytest.mark.parametrize(("per_node", "known"), [(2, "node"), (1, "network")])
def test_processes_measure_the_links_that_they_have(world, per_node, known):
    first, second = world(2).run(_calibrate, per_node)
    unknown = {"node": "network", "network": "node"}[known]
    assert getattr(first, f"{known}_bandwidth") == getattr(second, f"{known}_bandwidth") > 0
    assert getattr(first, f"{unknown}_bandwidth") is None
    assert first.devices_per_node == per_node


def test_what_is_measured_is_read_back_and_adds_up(world, tmp_path):
    hardware = world(2).run(_calibrate, 2)[0]
    path = tmp_path / "mine.yaml"
    write_hardware(hardware, path)
    read = read_hardware(str(path))
    assert read.efficiency.product == pytest.approx(hardware.efficiency.product, rel=1e-3)
    assert dataclasses.replace(read, efficiency=None).name == hardware.name
    assert read.peak_flops == {"float32": PEAK}
    rates = [rate for name, rate in read.measured.items() if name.endswith(("forward", "gradient"))]
    assert min(rates) <= read.efficiency.product * PEAK <= max(rates)
    assert read.efficiency.memory * read.memory_bandwidth <= 1.01 * max(
        read.measured[name] for name in ("layer_norm", "bias_gelu", "bias_dropout_residual")
    )
    assert read.power_watts is None and "power_watts" in compare(None, read)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("groups", [1, 4])
def test_products_measured_are_those_of_the_model(groups):
    config = _config(num_query_groups=groups)
    weights = sum(i * o * times for i, o, times in products_of(config).values())
    head = config.model.padded_vocab_size * config.model.hidden_size
    assert weights == num_matrix_parameters(config.model) + head


class Products(TorchDispatchMode):
    """Names the products that are computed."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name
        if name in ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"):
            self.names.append(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("kernels", "name"),
    [("product=onednn", "mkldnn::_linear_pointwise"), ("product=library", "aten::mm")],
)
def test_products_are_measured_as_training_computes_them(kernels, name):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    config = _config(kernels=(kernels,))
    bench = Bench(config, torch.device("cpu"), Stopwatch(torch.device("cpu")))
    calls = _product_calls(bench, rows=6, in_size=8, out_size=4)
    assert list(calls) == ["forward", "input_gradient", "weight_gradient"]
    shapes = [(6, 4), (6, 8), (4, 8)]
    for call, shape in zip(calls.values(), shapes, strict=True):
        with Products() as products:
            result = call()
        (out,) = result if isinstance(result, tuple) else (result,)
        assert products.names == [name] and out.shape == shape


@pytest.mark.parametrize(
    ("name", "memory", "found"),
    [
        ("NVIDIA H200", 150.1e9, "H200-SXM-141GB"),
        ("NVIDIA H100 80GB HBM3", 85.0e9, "H100-SXM5-80GB"),
        ("NVIDIA A100-SXM4-80GB", 85.0e9, "A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-40GB", 42.3e9, None),
        ("NVIDIA H100 PCIe", 85.0e9, None),
        ("NVIDIA GH200 480GB", 150.1e9, None),
    ],
)
def test_a_shipped_file_is_taken_for_the_same_device_only(name, memory, found):
    base = shipped_file_of(Device(name, "cuda", (9, 0), memory))
    assert (base.name if base else None) == found


@pytest.mark.parametrize(
    ("length", "window", "pairs"),
    [
        (None, None, 64 * 64),
        (None, 8, attended_pairs(64, 8)),
        (1, None, 64),  # every token sees itself alone
        (10**9, None, 64 * 64),
    ],
)
def test_expected_pairs_of_the_extremes(length, window, pairs):
    assert expected_pairs(64, length, window) == pytest.approx(pairs, rel=1e-4)


@pytest.mark.parametrize("window", [None, 12])
def test_expected_pairs_are_those_of_documents_drawn(window):
    starts = draw_starts(20_000, 64, 10)
    documents = Documents.create(
        starts, torch.device("cpu"), shape=tuple(starts.shape), window=window
    )
    seen = torch.arange(64) - documents.host_first_keys + 1
    drawn = (2 * seen - 1).sum(dim=1).double().mean().item()
    assert expected_pairs(64, 10, window) == pytest.approx(drawn, rel=0.02)


def test_a_stopwatch_keeps_to_its_budget_and_repeats_at_least():
    calls = []
    assert Stopwatch(torch.device("cpu")).median(lambda: calls.append(0), 0.0) >= 0.0
    assert len(calls) == 2 + FEWEST
    assert num_calls(1e-9, 1.0) == MOST and num_calls(0.1, 1.0) == 10 and num_calls(9, 1) == FEWEST


class _FakeEvent:
    """An event of a GPU that takes 1, 2, 3, … ms from one to the next."""

    num_made = 0

    def __init__(self, enable_timing):
        self.milliseconds = sum(range(_FakeEvent.num_made + 1))
        _FakeEvent.num_made += 1

    def record(self):
        pass

    def elapsed_time(self, later):
        return later.milliseconds - self.milliseconds


def test_times_on_a_gpu_are_medians_between_events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", _FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert Stopwatch(torch.device("cuda", 0)).repeated(lambda: None, 5) == pytest.approx(0.003)


@pytest.mark.gpu
def test_a_gpu_is_measured():
    config = Config(
        model=ModelConfig(
            num_layers=2,
            hidden_size=1024,
            num_attention_heads=8,
            attention_head_type="multiquery",
            max_position_embeddings=2048,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            vocab_size=4096,
            padded_vocab_size=4096,
        ),
        precision=PrecisionConfig(bf16=True),
        training=TrainingConfig(micro_batch_size=4),
        data=DataConfig(seq_length=2048),
    )
    device = torch.device("cuda", 0)
    hardware = calibrate(
        config, Launch(), device, document_length=None, budget=3.0, peak_flops=peak_flops
    )
    assert hardware.name == torch.cuda.get_device_name(device)
    assert hardware.memory_bytes > hardware.reserved_bytes > 0
    shares = dataclasses.asdict(hardware.efficiency)
    assert all(0.0 < shares[name] < 1.1 for name in shares if name not in ("link", "flash"))
