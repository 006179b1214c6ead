"""The estimate of the dry run, by hand."""

import pytest
import torch

from trainer.plan import parameters, state_bytes


def test_parameters_are_counted_by_whether_they_train() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))
    model[0].requires_grad_(False)
    assert parameters(model) == (3 * 4 + 4 + 4 * 5 + 5, 4 * 5 + 5)


@pytest.mark.parametrize("bf16", [True, False])
def test_zero3_splits_sixteen_bytes_a_trained_parameter(bf16: bool) -> None:
    assert state_bytes(1000, 1000, 1, bf16) == 16 * 1000
    assert state_bytes(1000, 1000, 8, bf16) == 2000
    assert state_bytes(1000, 0, 1, bf16) == (2000 if bf16 else 4000)
