"""Averages of a model's weights over training, float32: exponential, and of the last k.

Both see the named parameters; a tied weight counts once. Their state is a plain dictionary for `torch.save` and goes
back bit for bit; like a module's, it shares its tensors.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


class EMA:
    """The exponential moving average a <- decay a + (1 - decay) w, which starts at the first weights it is given.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ema = EMA(decay=0.5)
    >>> for value in (0.0, 8.0, 8.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     ema.update(model)
    >>> ema.average()["weight"].item()
    6.0
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay}: use a number from 0 to below 1")
        self.decay = decay
        self.weights: Weights = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights."""
        if not self.weights:
            self.weights = weights_of(model)
            return
        for name, parameter in model.named_parameters():
            average = self.weights[name].to(parameter.device)  # a loaded state may be elsewhere
            self.weights[name] = average.lerp_(parameter.float(), 1 - self.decay)

    def average(self) -> Weights:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = {name: tensor.clone() for name, tensor in state["weights"].items()}


class LastK:
    """The mean of the last k weights it was given; it keeps all k, in the main memory.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> last = LastK(2)
    >>> for value in (100.0, 1.0, 2.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     last.update(model)
    >>> last.average()["weight"].item()
    1.5
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k {k}: use 1 or more")
        self.kept: deque[Weights] = deque(maxlen=k)

    def update(self, model: nn.Module) -> None:
        """Take in the model's weights, and drop the oldest where there are k already."""
        self.kept.append(weights_of(model, "cpu"))

    def average(self) -> Weights:
        return {name: torch.stack([weights[name] for weights in self.kept]).mean(0) for name in self.kept[0]}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = deque(state["kept"], maxlen=self.kept.maxlen)


def weights_of(model: nn.Module, device: str | None = None) -> Weights:
    """A float32 copy of every parameter, on its own device or another."""
    return {
        name: parameter.detach().to(device or parameter.device, torch.float32, copy=True)
        for name, parameter in model.named_parameters()
    }


@contextlib.contextmanager
def averaged(model: nn.Module, average: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The model with the averaged weights inside, and with its own, bit for bit, after."""
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        put_weights(model, average)
        yield model
    finally:
        put_weights(model, own)


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the model, in its own dtypes and on its own devices."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
