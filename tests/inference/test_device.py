from __future__ import annotations

import pytest
import torch

from cifarnet._hardware import _is_cpu_suitable, is_bf16_faster
from cifarnet.errors import DeviceMemoryError, SettingError
from cifarnet.inference import resolve_device, resolve_precision
from cifarnet.inference.device import out_of_memory_advice

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "cpu_name", "suits"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "AMD EPYC 9R14", True),
        ({"avx512_bf16": True, "amx_bf16": False}, "Intel(R) Xeon(R) Processor", False),
        ({"avx512_bf16": True, "amx_bf16": True}, "Intel(R) Xeon(R) Platinum 8488C", True),
        ({"arm_bf16": True}, "aarch64", True),
        ({"avx512_bf16": False, "avx2": True}, "AMD EPYC 7R13", False),
    ],
)
def test_bf16_suits_cpus_that_are_faster_in_it(capabilities: dict[str, bool], cpu_name: str, suits: bool) -> None:
    assert _is_cpu_suitable(capabilities, cpu_name) == suits


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_autocast_computes_in_the_precision(name: str, dtype: torch.dtype) -> None:
    with resolve_precision(name, CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert resolve_precision("auto", CPU).name == ("bf16" if is_bf16_faster(CPU) else "float32")
    assert not is_bf16_faster(torch.device("meta"))


def test_unknown_precisions_and_devices_are_refused() -> None:
    with pytest.raises(SettingError, match='precision "bf61" is unknown; did you mean "bf16"'):
        resolve_precision("bf61", CPU)
    with pytest.raises(SettingError, match=r'device "gpu" cannot be used .*Did you mean "cuda"'):
        resolve_device("gpu")
    with pytest.raises(SettingError, match='device "meta" stores no values'):
        resolve_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match=r'device "cuda" cannot be used .*Use "auto"'):
            resolve_device("cuda")
        assert resolve_device("auto") == CPU


def test_processes_get_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for num_gpus, index in ((4, 3), (1, 0)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=num_gpus: n)
        assert resolve_device("auto") == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingError, match=r"has 2 GPUs, too few for process 4 on it. Use --nproc-per-node 2"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED\nmore"),
    ],
)
def test_out_of_memory_errors_get_advice(error: RuntimeError) -> None:
    with (
        pytest.raises(DeviceMemoryError, match=r"^Buy memory\. \(.+\)$"),
        out_of_memory_advice(CPU, lambda: "Buy memory."),
    ):
        raise error
    with pytest.raises(RuntimeError, match=r"^other$"), out_of_memory_advice(CPU, lambda: "Buy memory."):
        raise RuntimeError("other")
