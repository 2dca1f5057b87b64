"""The optimiser against torch's own Adam, and its schedule against a table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vidcls.errors import UserError
from vidcls.optim import Adam, cosine_factor

SETTINGS: dict[str, Any] = {"lr": 0.001, "eps": 1e-7, "weight_decay": 0.0, "schedule": "constant"}


def adam(**changes: Any) -> Adam:
    return Adam(**(SETTINGS | changes))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 10) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, labels = torch.randn(4, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return list(model.parameters())


def test_without_weight_decay_it_is_torchs_adam_bit_for_bit() -> None:
    ours, theirs = network(), network()
    optimizer, _ = adam().build(ours.parameters(), total_steps=10)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.001, eps=1e-7)
    for one, two in zip(train(ours, optimizer), train(theirs, reference), strict=True):
        assert torch.equal(one, two)


def test_weight_decay_is_decoupled() -> None:
    ours, theirs = network(), network()
    optimizer, _ = adam(weight_decay=0.1).build(ours.parameters(), total_steps=10)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.001, eps=1e-7, weight_decay=0.1)
    for one, two in zip(train(ours, optimizer), train(theirs, reference), strict=True):
        assert torch.equal(one, two)


def test_the_first_step_is_kerass() -> None:
    """Adam's first step is lr * g / (|g| + eps): with eps = 1e-7 it shows for a gradient of that size."""
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer, _ = adam().build([parameter], total_steps=1)
    parameter.grad = torch.tensor([1e-7, 1.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([-0.0005, -0.001], dtype=torch.float64), rtol=1e-6, atol=0)


def test_fixed_parameters_are_left_out() -> None:
    fixed, trained = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer, _ = adam().build([fixed, trained], total_steps=1)
    assert [p.numel() for group in optimizer.param_groups for p in group["params"]] == [3]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [2.0, 2.0, 2.0, 2.0, 2.0]), ("cosine", [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0])],
)
def test_learning_rates_of_a_run_of_four_steps(schedule: str, rates: list[float]) -> None:
    optimizer, scheduler = adam(lr=2.0, schedule=schedule).build([nn.Parameter(torch.ones(1))], total_steps=4)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(4):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(rates, abs=1e-12)


@given(st.integers(1, 500), st.data())
def test_cosine_falls_from_one_to_zero(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 1 >= cosine_factor(step, total) > cosine_factor(step + 1, total) >= 0
    assert cosine_factor(step, total) + cosine_factor(total - step, total) == pytest.approx(1)
    assert cosine_factor(total + step, total) == 0


def test_cosine_of_no_steps_is_defined() -> None:
    assert cosine_factor(0, 0) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.1}, r"expected optim.lr to be a number from 0 to inf; got -0.1"),
        ({"lr": math.nan}, r"expected optim.lr to be a number .* got nan"),
        ({"eps": -1.0}, r"expected optim.eps to be a number .* got -1"),
        ({"weight_decay": -1.0}, r"expected optim.weight_decay to be a number .* got -1"),
        ({"schedule": "step"}, r"expected optim.schedule to be one of constant, cosine; got 'step'"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adam(**wrong)
