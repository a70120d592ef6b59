"""Which GPUs a server has."""

import pytest

from skyrl_kernel.errors import CapabilityError
from skyrl_vllm.devices import shares


def test_each_engine_has_gpus_of_its_own_and_the_trainer_keeps_the_first() -> None:
    gpus = ["0", "1", "2", "3"]
    assert shares(gpus, 2, 2, apart=False) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert shares(gpus, 3, 1, apart=True)[0] == {"CUDA_VISIBLE_DEVICES": "1"}
    assert shares([], 2, 2, apart=True) == [{}, {}]  # all share the processor
    with pytest.raises(CapabilityError, match="num_engines=2 engines need 2 GPUs each and the tr"):
        shares(gpus, 2, 2, apart=True)
