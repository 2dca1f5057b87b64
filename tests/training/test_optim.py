"""The optimiser against torch's own Adam, its schedules against tables and torch's, and its stages."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vidcls.errors import UserError
from vidcls.training.optim import build_optimizer, one_cycle_factor, schedule_factor

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.001, "eps": 1e-7, "weight_decay": 0.0, "schedule": "constant"}
Options = dict[str, Any]


def adam(**changes: Any) -> Options:
    return ADAMW | changes


def built(
    optim: Options, stages: list[list[nn.Parameter]], total_steps: int = 10, epochs: int = 1
) -> tuple[torch.optim.Optimizer, Any]:
    both = build_optimizer(optim, stages, total_steps, epochs)
    return both["optimizer"], both["lr_scheduler"]["scheduler"]


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


def test_the_first_step_is_kerass() -> None:
    """Adam's first step is lr * g / (|g| + eps): with eps = 1e-7 it shows for a gradient of that size."""
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer, _ = built(adam(), [[parameter]], total_steps=1)
    parameter.grad = torch.tensor([1e-7, 1.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([-0.0005, -0.001], dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_defaults_are_the_plain_optimiser_and_schedule() -> None:
    """Of a network of one stage: the same steps to the bit, and the same state in checkpoints."""
    ours, theirs = network(), network()
    pair = built(adam(schedule="cosine"), [list(ours.parameters())], total_steps=4, epochs=2)
    plain = torch.optim.AdamW(list(theirs.parameters()), lr=0.001, eps=1e-7, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / 4, 1))))
    for _ in range(4):
        for model, optimizer in ((ours, pair[0]), (theirs, plain)):
            train(model, optimizer, steps=1)
        pair[1].step()
        schedule.step()
        assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert pair[1].state_dict() == schedule.state_dict()
    one, two = pair[0].state_dict(), plain.state_dict()
    assert one["param_groups"] == two["param_groups"] and one["state"].keys() == two["state"].keys()
    for place, state in one["state"].items():
        assert all(torch.equal(value, two["state"][place][name]) for name, value in state.items())


def test_fixed_parameters_are_left_out() -> None:
    fixed, trained = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer, _ = built(adam(), [[fixed], [fixed, trained]], total_steps=1)
    assert [[p.numel() for p in group["params"]] for group in optimizer.param_groups] == [[3]]


# ---- schedules


def rates(optim: Options, stages: int, total_steps: int, epochs: int = 1) -> list[list[float]]:
    """The learning rate of each stage, at each step and after the last."""
    optimizer, scheduler = built(optim, [[nn.Parameter(torch.ones(1))] for _ in range(stages)], total_steps, epochs)
    seen = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(total_steps):
        optimizer.step()
        scheduler.step()
        seen.append([group["lr"] for group in optimizer.param_groups])
    return [list(stage) for stage in zip(*seen, strict=True)]


FALL = [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0]


@pytest.mark.parametrize(
    ("options", "total_steps", "expected"),
    [
        ({"schedule": "constant"}, 4, [2.0, 2.0, 2.0, 2.0, 2.0]),
        ({"schedule": "cosine"}, 4, FALL),
        ({"schedule": "constant", "warmup": 0.5}, 6, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]),
        ({"schedule": "cosine", "warmup": 0.2}, 5, [1.0, *FALL]),
        ({"schedule": "constant", "warmup": 1.0}, 3, [0.5, 1.0, 1.5, 2.0]),
        ({"schedule": "cosine", "warmup": 0.01}, 4, FALL),  # less than half a step is none
        # Up to 2 at 0.5 * 6 - 1 = 2, down to 2 / 250000 at 5, and there it stays.
        ({"schedule": "one_cycle", "warmup": 0.5}, 6, [0.08, 1.04, 2.0, 1.500002, 0.500006, 8e-6, 8e-6]),
    ],
)
def test_learning_rates_of_short_runs(options: dict[str, Any], total_steps: int, expected: list[float]) -> None:
    assert rates(adam(lr=2.0, **options), 1, total_steps) == [pytest.approx(expected, abs=1e-12)]


@settings(deadline=None, max_examples=40)  # the whole schedule is stepped through each time
@given(st.integers(2, 300), st.floats(0.01, 0.99))
def test_one_cycle_is_torchs(total_steps: int, warmup: float) -> None:
    assume(warmup * total_steps != 1)  # where torch divides by zero
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3.0, total_steps=total_steps, pct_start=warmup, cycle_momentum=False
    )
    for step in range(total_steps):
        assert 3 * one_cycle_factor(step, total_steps, warmup) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        if step < total_steps - 1:
            scheduler.step()


@given(st.sampled_from(["constant", "cosine", "one_cycle"]), st.integers(0, 300), st.floats(0.01, 0.99))
def test_rates_rise_and_then_never_do_again(schedule: str, total: int, warmup: float) -> None:
    factors = [schedule_factor(schedule, step, total, warmup) for step in range(total + 2)]
    assert all(0 <= factor <= 1 for factor in factors)
    highest = factors.index(max(factors))
    assert factors[: highest + 1] == sorted(factors[: highest + 1])
    assert factors[highest:] == sorted(factors[highest:], reverse=True)
    assert abs(highest - warmup * total) <= 2  # one_cycle's peak is a step earlier, and between two steps
    if total >= 20 and schedule != "one_cycle" and warmup > 0.1:  # from near 0, in equal steps
        rise = [after - before for before, after in pairwise(factors[: highest + 1])]
        assert factors[0] <= 0.5 and rise == pytest.approx([factors[0]] * len(rise))


@given(st.integers(1, 500), st.data())
def test_cosine_falls_from_one_to_zero(total: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 1 >= schedule_factor("cosine", step, total, 0.0) > schedule_factor("cosine", step + 1, total, 0.0) >= 0
    mirrored = schedule_factor("cosine", total - step, total, 0.0)
    assert schedule_factor("cosine", step, total, 0.0) + mirrored == pytest.approx(1)
    assert schedule_factor("cosine", total + step, total, 0.0) == 0


def test_cosine_of_no_steps_is_defined() -> None:
    assert schedule_factor("cosine", 0, 0, 0.0) == 1


# ---- stages


def test_stages_below_the_last_have_a_rate_of_their_own() -> None:
    below, last = rates(adam(lr=2.0, schedule="cosine", encoder_lr_factor=0.1), 3, 4)[1:]
    assert last == pytest.approx(FALL) and below == pytest.approx([0.1 * rate for rate in FALL])
    for alone in ({"encoder_lr_factor": 0.1}, {"unfreeze_epochs": 1}):
        with pytest.warns(UserWarning, match="no pretrained stage"):
            assert rates(adam(lr=2.0, **alone), 1, 2) == [[2.0, 2.0, 2.0]]  # the only one is the last one


def test_each_stage_starts_after_the_one_above_it() -> None:
    """Six epochs of two steps, and two epochs from one stage's start to the next one's."""
    lowest, middle, last = rates(adam(lr=2.0, unfreeze_epochs=2, encoder_lr_factor=0.5), 3, 12, epochs=6)
    assert last == [2.0] * 13
    assert middle == [0.0] * 4 + [1.0] * 9
    assert lowest == [0.0] * 8 + [1.0] * 5
    with pytest.warns(UserWarning, match="1 of 3 stages of the network never train"):
        assert rates(adam(lr=2.0, unfreeze_epochs=5), 3, 12, epochs=6)[0] == [0.0] * 13


def test_what_starts_late_joins_the_schedule() -> None:
    below, last = rates(adam(lr=2.0, unfreeze_epochs=1, schedule="cosine"), 2, 4, epochs=2)
    assert below == pytest.approx([0.0, 0.0, *FALL[2:]]) and last == pytest.approx(FALL)


def test_a_waiting_stage_stays_as_it_is_to_the_bit() -> None:
    model = network()
    stages = [list(layer.parameters()) for layer in model.children() if not isinstance(layer, nn.Tanh)]
    optimizer, scheduler = built(adam(unfreeze_epochs=1, weight_decay=0.5), stages, total_steps=4, epochs=2)
    start = [parameter.detach().clone() for parameter in stages[0]]
    for step in range(4):
        train(model, optimizer, steps=1)
        scheduler.step()
        same = [torch.equal(one, two) for one, two in zip(start, stages[0], strict=True)]
        assert same == [step < 2] * 2


def test_fixed_stages_at_the_bottom_change_no_ones_turn() -> None:
    fixed, below, last = (nn.Parameter(torch.ones(1), requires_grad=trains) for trains in (False, True, True))
    optimizer, scheduler = built(adam(lr=2.0, unfreeze_epochs=1), [[fixed], [below], [last]], total_steps=2, epochs=2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 2.0]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 2.0]


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    optim = adam(lr=2.0, schedule="one_cycle", warmup=0.3, unfreeze_epochs=1, encoder_lr_factor=0.1)
    straight = rates(optim, 2, 10, epochs=5)
    stages = [[nn.Parameter(torch.ones(1))] for _ in range(2)]
    optimizer, scheduler = built(optim, stages, 10, epochs=5)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    resumed = built(optim, stages, 10, epochs=5)
    resumed[0].load_state_dict(optimizer.state_dict())
    resumed[1].load_state_dict(scheduler.state_dict())
    for step in range(4, 11):
        resumed[0].step()
        resumed[1].step()
        assert [group["lr"] for group in resumed[0].param_groups] == [stage[step] for stage in straight]


# ---- optimisers and schedulers of others


def test_any_optimiser_of_torchs_with_its_own_keywords() -> None:
    """eps is of adam.yaml: it is left out where an optimiser does not have it."""
    ours, theirs = network(), network()
    sgd = adam(_target_="torch.optim.SGD", lr=0.1, momentum=0.9, nesterov=True)
    optimizer, _ = built(sgd, [list(ours.parameters())])
    assert isinstance(optimizer, torch.optim.SGD)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for one, two in zip(train(ours, optimizer), train(theirs, reference), strict=True):
        assert torch.equal(one, two)
    assert rates(sgd | {"schedule": "cosine", "lr": 2.0}, 1, 4) == [pytest.approx(FALL)]


@pytest.mark.parametrize("own", [{}, {"foreach": True}, {"fused": False}, {"_target_": "torch.optim.NAdam"}])
def test_fused_where_the_optimiser_can_and_nobody_says_otherwise(own: dict[str, Any]) -> None:
    optimizer = build_optimizer(adam(**own), [list(network().parameters())], 10, 1, fused=True)["optimizer"]
    assert optimizer.param_groups[0].get("fused") is (True if not own else own.get("fused"))


def test_any_scheduler_of_torchs() -> None:
    schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1, "gamma": 0.5}
    optim = adam(lr=2.0, schedule=schedule, encoder_lr_factor=0.1)
    assert rates(optim, 2, 2) == [pytest.approx([0.2, 0.1, 0.05]), pytest.approx([2.0, 1.0, 0.5])]
    both = build_optimizer(optim, [[nn.Parameter(torch.ones(1))]], 10, 1)
    assert (both["lr_scheduler"]["interval"], both["lr_scheduler"]["monitor"]) == ("epoch", "val/loss")
    optim["schedule"] = schedule | {"interval": "step", "monitor": "val/accuracy"}
    both = build_optimizer(optim, [[nn.Parameter(torch.ones(1))]], 10, 1)
    assert (both["lr_scheduler"]["interval"], both["lr_scheduler"]["monitor"]) == ("step", "val/accuracy")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"schedule": "step"}, "optim.schedule"),
        ({"_target_": "torch.optim.Adamm"}, "optim._target_"),
        ({"_target_": "no_such_package.SGD"}, "optim._target_"),
        ({"momentun": 0.9}, "optim._target_"),
        ({"_target_": "torch.optim.SGD", "lr": -1.0}, "optim._target_"),
        ({"schedule": {"_target_": "torch.optim.lr_scheduler.StepLR"}}, "optim.schedule._target_"),
        ({"schedule": {"step_size": 3}}, "optim.schedule._target_"),
    ],
)
def test_what_cannot_be_built(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as error:
        built(adam(**wrong), [[nn.Parameter(torch.ones(1))]])
    assert error.value.code == code
