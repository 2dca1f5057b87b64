"""From the frames' features to one vector: pooling by hand, directions and order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidcls.models.heads import Head, PoolHead, Pooling, RecurrentHead, TransformerHead, build_head

POOLINGS = ("last", "mean", "max", "attention", "statistics")
# Two clips of four frames with two features each.
STATES = torch.tensor([[[1.0, 8.0], [3.0, 6.0], [2.0, 4.0], [6.0, 2.0]], [[0.0, -1.0]] * 4])


def head(name: str, num_features: int = 3, num_frames: int = 5, **options: Any) -> Head:
    """A small one, with some of its options changed."""
    pool: dict[str, Any] = {"pooling": "mean"}
    recurrent: dict[str, Any] = {"hidden_size": 4, "num_layers": 1, "bidirectional": False, "pooling": "last"}
    transformer: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "pooling": "mean"}
    defaults = {"pool": pool, "transformer": transformer}.get(name, recurrent)
    torch.manual_seed(0)
    return build_head(num_features, num_frames, name, **(defaults | options)).eval()


def features(num_frames: int = 5) -> Tensor:
    return torch.randn(2, num_frames, 3, generator=torch.Generator().manual_seed(1))


# ---- pooling


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("last", [[6.0, 2.0], [0.0, -1.0]]),
        ("mean", [[3.0, 5.0], [0.0, -1.0]]),
        ("max", [[6.0, 8.0], [0.0, -1.0]]),
        ("attention", [[3.0, 5.0], [0.0, -1.0]]),  # the mean, before it has learned anything
        (
            "statistics",
            # means; deviations sqrt((4 + 0 + 1 + 9) / 4), sqrt((9 + 1 + 1 + 9) / 4); maxima;
            # changes (0 + 2 + 1 + 4) / 4, (0 + 2 + 2 + 2) / 4
            [[3.0, 5.0, 3.5**0.5, 5**0.5, 6.0, 8.0, 1.75, 1.5], [0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0]],
        ),
    ],
)
def test_pooling_by_hand(kind: str, expected: list[list[float]]) -> None:
    pooling = Pooling(kind, 2)
    torch.testing.assert_close(pooling(STATES), torch.tensor(expected))
    assert pooling.num_features == len(expected[0])


def test_attention_by_hand() -> None:
    """Scores u . tanh(W h + b), where only the first unit of W h + b sees the states: as h_0 - 2."""
    pooling = Pooling("attention", 2)
    inner, _, outer = pooling.score.children()
    assert isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.zero_()
        inner.weight[0, 0], inner.bias[0], outer.weight[0, 0] = 1.0, -2.0, 3.0
    scores = 3 * torch.tanh(torch.tensor([-1.0, 1.0, 0.0, 4.0]))
    weights = scores.exp() / scores.exp().sum()
    expected = sum(weight * state for weight, state in zip(weights, STATES[0], strict=True))
    torch.testing.assert_close(pooling(STATES)[0], expected)
    torch.testing.assert_close(pooling(STATES)[1], STATES[1, 0])  # of equal frames nothing else can be said


@pytest.mark.parametrize("kind", POOLINGS)
def test_one_frame_and_still_clips_can_be_trained(kind: str) -> None:
    for states in (torch.ones(2, 1, 3, requires_grad=True), torch.ones(2, 4, 3, requires_grad=True)):
        pooled = Pooling(kind, 3)(states)
        (pooled * torch.arange(1.0, 1 + pooled.shape[1])).sum().backward()
        assert states.grad is not None and bool(states.grad.isfinite().all()) and bool(states.grad.any())


# ---- order

ORDER = torch.tensor([3, 0, 4, 2, 1])


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_pool_heads_are_blind_to_order(kind: str) -> None:
    pool = head("pool", pooling=kind)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_()  # attention that weighs
        torch.testing.assert_close(pool(features()), pool(features()[:, ORDER]))


@pytest.mark.parametrize(
    "made",
    [
        {"name": "pool", "pooling": "last"},
        {"name": "pool", "pooling": "statistics"},
        {"name": "lstm"},
        {"name": "gru"},
        {"name": "lstm", "bidirectional": True, "pooling": "attention"},
        {"name": "transformer"},
    ],
    ids=lambda made: "-".join(map(str, made.values())),
)
def test_the_others_see_order(made: dict[str, Any]) -> None:
    one = head(**made)
    with torch.no_grad():
        assert float((one(features()) - one(features()[:, ORDER])).abs().max()) > 1e-4


def test_the_transformer_sees_order_by_positions_alone() -> None:
    transformer = head("transformer")
    assert isinstance(transformer, TransformerHead) and transformer.positions.shape == (5, 8)
    with torch.no_grad():
        transformer.positions.copy_(transformer.positions[:1].expand(5, 8))
        torch.testing.assert_close(transformer(features()), transformer(features()[:, ORDER]))
        transformer.positions[2, :4] += 1.0  # not all eight, which normalisation would take away again
        assert float((transformer(features()) - transformer(features()[:, ORDER])).abs().max()) > 1e-4


# ---- recurrent heads


def test_last_of_both_directions_is_what_each_ends_with() -> None:
    both = head("lstm", bidirectional=True)
    assert isinstance(both, RecurrentHead) and both.num_features == 8
    states, (last, _) = both.layers(features())
    torch.testing.assert_close(both(features()), torch.cat([last[0], last[1]], dim=1))
    # The backward one ends at the first frame; its state at the last frame has seen that frame alone.
    assert not torch.allclose(both(features())[:, 4:], states[:, -1, 4:])


def test_the_backward_direction_is_the_forward_one_of_the_reversed_clip() -> None:
    forward, both = head("gru"), head("gru", bidirectional=True)
    assert isinstance(forward, RecurrentHead) and isinstance(both, RecurrentHead)
    with torch.no_grad():
        for name, parameter in forward.layers.named_parameters():
            both.layers.get_parameter(f"{name}_reverse").copy_(parameter)
        torch.testing.assert_close(both(features())[:, 4:], forward(features().flip(1)))


@pytest.mark.parametrize(("cell", "kind"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
def test_stacked_layers_and_pooled_states(cell: str, kind: type[nn.Module]) -> None:
    stacked = head(cell, num_layers=2, pooling="max")
    assert isinstance(stacked, RecurrentHead) and isinstance(stacked.layers, kind)
    assert stacked.layers.num_layers == 2
    states, _ = stacked.layers(features())
    torch.testing.assert_close(stacked(features()), states.max(dim=1).values)


@pytest.mark.parametrize("name", ["pool", "lstm", "gru", "transformer"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_shapes(name: str, pooling: str) -> None:
    wide = {"bidirectional": True} if name in ("lstm", "gru") else {}
    one = head(name, pooling=pooling, **wide)
    size = {"pool": 3}.get(name, 8) * (4 if pooling == "statistics" else 1)
    assert one.num_features == size and one(features()).shape == (2, size)
    assert head(name, num_frames=1, pooling=pooling, **wide)(features(1)).shape == (2, size)


def test_the_plain_pool_head_is_the_mean() -> None:
    torch.testing.assert_close(PoolHead(2)(STATES), STATES.mean(dim=1))
