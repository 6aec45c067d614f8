import pytest
import torch

from pylon.system import device
from pylon.system.errors import UserError


def test_unavailable_device_and_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        device.make_accelerator("cuda", "auto")
    with pytest.raises(UserError, match="--precision fp16 needs a CUDA device, not cpu"):
        device.make_accelerator("cpu", "fp16")


@pytest.mark.parametrize(("hardware", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_precision_on_a_cpu(monkeypatch, hardware, expected):
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(device, "cpu_has_bf16", lambda: hardware)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = device.make_accelerator("cpu", "auto")
    assert accelerator.mixed_precision == expected
    assert accelerator.device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
