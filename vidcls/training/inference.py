"""From batches to probabilities, outside training: shared by a run's own test, evaluate.py and predict.py."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def use_channels_last(model: nn.Module, device: torch.device) -> None:
    """Stores the kernels of convolutions channels last, like stored frames: a GPU would copy them in each step."""
    if device.type != "cuda":
        return
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d) and part.groups == 1:
            layout = torch.channels_last if isinstance(part, nn.Conv2d) else torch.channels_last_3d
            part.weight.data = part.weight.data.contiguous(memory_format=layout)


@contextmanager
def without_cudnn_benchmark() -> Iterator[None]:
    """Disables cuDNN's benchmark for evaluation: the kernels that it chooses in each process round differently."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def pad_batch(batch: Tensor, batch_size: int) -> Tensor:
    """The batch, padded with zeros to ``batch_size`` items, as products of other shapes may round differently."""
    missing = max(batch_size - len(batch), 0)
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch


def clip_logits(
    network: Callable[[Tensor], Tensor], videos: Tensor, num_clips: int, batch_size: int
) -> Float[Tensor, "B M K"]:
    """Logits of each clip of videos [B, *clip], or [B, M, *clip] for ``num_clips`` > 1, in full batches."""
    clips = videos.unbind(dim=1) if num_clips > 1 else [videos]
    with without_cudnn_benchmark():
        return torch.stack([network(pad_batch(clip, batch_size))[: len(videos)].float() for clip in clips], dim=1)


def average_clips(logits: Float[Tensor, "B M K"]) -> Float[Tensor, "B K"]:
    """The mean of the clips' probabilities.

    Example:
        >>> average_clips(torch.tensor([[[0.0, 0.0], [50.0, 0.0]]]))
        tensor([[0.7500, 0.2500]])
    """
    # One clip after the other, as a sum in another order may round differently.
    return reduce(torch.add, logits.softmax(dim=2).unbind(dim=1)) / logits.shape[1]


def video_losses(logits: Float[Tensor, "B M K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The cross-entropy of the averaged probabilities, finite even if one underflows."""
    log_p = logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])  # [B, K]
    return F.nll_loss(log_p, labels, reduction="none")
