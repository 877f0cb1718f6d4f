"""What nvidia-smi says of a GPU while something runs on it; a script stands for nvidia-smi."""

import time
from types import SimpleNamespace

import torch

from megatron.planning.gpu_monitor import QUERY, GpuMonitor

SCRIPT = """#!/bin/sh
echo '1980, 650.5, 61, 1980, 700.00'
echo '1755, [N/A], 70, 1980, 700.00'
echo '1830, 700.0, 66, 1980, 700.00'
printf '1830, 7'
echo "$@" > "$0.asked"
exec sleep 1000
"""


def test_readings_are_what_nvidia_smi_says_until_the_end(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    properties = SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    asked = tmp_path / "nvidia-smi.asked"
    with GpuMonitor(torch.device("cuda", 0)) as monitor:
        deadline = time.monotonic() + 60
        while not asked.exists() or not asked.read_text():
            assert time.monotonic() < deadline
        assert monitor.samples == []
    assert monitor.readings("power_w") == [650.5, 700.0]
    assert monitor.summary()["sm_clock_mhz"] == [1755, 1830, 1980]
    assert "--id=GPU-12-34" in asked.read_text()
    assert f"--query-gpu={','.join(QUERY)}" in asked.read_text()


def test_a_cpu_is_not_asked():
    with GpuMonitor(torch.device("cpu")) as monitor:
        pass
    assert monitor.samples == [] and monitor.summary() == {}
