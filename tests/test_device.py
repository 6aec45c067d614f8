import pytest
import torch

from pylon import device
from pylon.cli import UserError


def test_unavailable(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        device.make_accelerator("cuda", "auto")
    with pytest.raises(UserError, match="--precision fp16 needs a CUDA device, not cpu"):
        device.make_accelerator("cpu", "fp16")


def test_each_epoch_and_process_has_random_numbers_of_its_own():
    def numbers(*key):
        device.seed_epoch(*key)
        return tuple(torch.rand(3).tolist())

    keys = [(seed, epoch, process) for seed in (0, 1, 2**32 - 1) for epoch in (1, 2) for process in (0, 1)]
    with torch.random.fork_rng():
        assert len({numbers(*key) for key in keys}) == len(keys)
        assert numbers(0, 1, 0) == numbers(0, 1, 0)


@pytest.mark.parametrize(("hardware", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_precision_on_a_cpu(monkeypatch, hardware, expected):
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(device, "cpu_has_bf16", lambda: hardware)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = device.make_accelerator("cpu", "auto")
    assert accelerator.mixed_precision == expected
    assert accelerator.device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
