"""A processor is named by what decides the bits that its loops give."""

import torch

from megatron.kernels.processor import cpu_kind, processor_name

CPU = torch.device("cpu")


def test_the_kind_of_a_cpu_is_read_from_what_linux_says(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 2\n")
    assert cpu_kind(told) == f"AuthenticAMD {torch.backends.cpu.get_cpu_capability()}"
    assert cpu_kind(tmp_path / "nothing") == ""


def test_a_cpu_that_multiplies_bf16_is_another_kind_than_one_that_does_not(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    names = []
    for has_units in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_units: has)
        names.append(processor_name(CPU))
    assert names[0] and names[1] == f"{names[0]} bf16"


def test_a_gpu_is_named_by_its_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"model of {device}")
    assert processor_name(torch.device("cuda", 3)) == "model of cuda:3"
