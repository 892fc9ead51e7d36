"""One optimizer for a GPT: Muon for the matrices of its blocks, AdamW for everything else.

It is one object because a trainer counts a step for each optimizer that it has. The mathematics are those of
`torch.optim.Muon` (Jordan 2024, https://kellerjordan.github.io/posts/muon) and `torch.optim.AdamW` (Loshchilov and
Hutter 2019, arXiv:1711.05101), which it holds and which work on its own groups and state.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fluxentropy.errors import RunError
from fluxentropy.pretraining.options import OptimConfig

# --- the optimizer ----------------------------------------------------------------------------------------------------


ROLES = ("matrix", "embedding", "head", "gain")


BATCHED = "float32 on CPUs"  # what identities say of it: in earlier versions Muon had bfloat16 everywhere


class BatchedMuon(Muon):
    """torch's Muon, with matrices of one shape together, and in float32 where they are on a CPU.

    torch's own takes one matrix after the other, in bfloat16, which is the slowest format of a processor without units
    for it: most of the time of a small GPT's training went there.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """m <- lerp(m, g, 1 - momentum);  w <- (1 - lr decay) w - lr scale orthogonal(lerp(g, m, momentum))"""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                updates = orthogonal(
                    torch.stack([self._nesterov(parameter, group["momentum"]) for parameter in parameters]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                    group["eps"],
                )
                scale = 0.2 * max(shape) ** 0.5  # so that the root mean square is that of AdamW's updates
                if group["adjust_lr_fn"] != "match_rms_adamw":
                    scale = max(1, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)
        return loss

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad, memory_format=torch.preserve_format)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)


def orthogonal(
    matrices: Tensor,
    coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    steps: int = 5,
    eps: float = 1e-7,
) -> Tensor:
    """Matrices (n, a, b) with singular values between about 0.7 and 1.2, by Newton-Schulz iterations of degree 5.

        X <- c0 X + (c1 X X' + c2 (X X')^2) X,  from X / |X|,

    in float32 on a CPU, else in bfloat16. Source: Jordan 2024 (see the module).

    >>> found = torch.linalg.svdvals(orthogonal(torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))))
    >>> bool((0.6 < found).all() and (found < 1.3).all())
    True
    """
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    first, third, fifth = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.mT if tall else x


class MuonAdamW(Optimizer):
    """Both optimizers as one: `muon` and `adamw` are the keyword arguments of each one's groups of parameters."""

    def __init__(self, muon: Iterable[dict[str, Any]], adamw: Iterable[dict[str, Any]]) -> None:
        self.parts = (BatchedMuon(list(muon)), AdamW(list(adamw)))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first, rest = self.parts
        count = len(first.param_groups)
        first.param_groups, rest.param_groups = self.param_groups[:count], self.param_groups[count:]
        for part in self.parts:  # loading a state makes new groups and a new state
            part.state = self.state
            part.step()
        return loss


def parameters_by_role(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each parameter in one role: matrix (of a linear layer in the blocks), embedding, head (where not tied), or gain.

    Roles without parameters are left out.
    """
    roles: dict[str, list[nn.Parameter]] = {role: [] for role in ROLES}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "head", None)
    for parameter in model.parameters():
        if id(parameter) in embeddings:
            roles["embedding"].append(parameter)
        elif isinstance(head, nn.Linear) and parameter is head.weight:
            roles["head"].append(parameter)
        else:
            roles["matrix" if parameter.ndim == 2 else "gain"].append(parameter)
    return {role: parameters for role, parameters in roles.items() if parameters}


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of a GPT. Each group has its `role` and, as `initial_lr`, its peak learning rate."""
    groups: dict[str, dict[str, Any]] = {}
    for role, parameters in parameters_by_role(model).items():
        own: float | None = getattr(config, f"{role}_lr")
        lr = config.lr if own is None else own
        decay = config.weight_decay if role == "matrix" else 0.0
        groups[role] = {"params": parameters, "role": role, "lr": lr, "initial_lr": lr, "weight_decay": decay}
    adamw = {"betas": (config.beta1, config.beta2), "eps": config.eps, "fused": config.fused or None}
    if config.kind == "adamw":
        return AdamW([{**group, **adamw} for group in groups.values()])
    matrices = {**groups.pop("matrix"), "momentum": config.momentum, "adjust_lr_fn": config.muon_scale}
    return MuonAdamW([matrices], [{**group, **adamw} for group in groups.values()])


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


# --- averages of weights ----------------------------------------------------------------------------------------------
#
# An exponential average with a fixed decay d begins with the first weights and keeps a share d^(n-1) of them after n:
# 77.5 % after 256 at 0.999. It is warmed up here: the n-th weights come in with the decay
#
#     d_n = min(d, n / (n + 9)),      horizon 1 / (1 - d_n) = min(1 / (1 - d), 1 + n / 9) updates
#
# so that what is averaged is about the last ninth of the weights so far until that is as far as d reaches, and the
# share of the first ones, the product of d_2 ... d_n, is soon below 1e-9. The rule is that of TensorFlow's
# ExponentialMovingAverage with `num_updates`.
#
# Both see the named parameters; a tied weight counts once. Their state is a plain dictionary for `torch.save` and goes
# back bit for bit; like a module's, it shares its tensors.


Weights = dict[str, Tensor]
WARMED_UP = "warmed up"  # how an exponential average begins; that of earlier versions kept the first weights


class EMA:
    """The exponential moving average a <- d_n a + (1 - d_n) w, warmed up (see the module), by torch's `AveragedModel`.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ema = EMA(model, decay=0.5)
    >>> for value in (0.0, 11.0, 11.0):  # with decays 2/11 and 3/12
    ...     _ = nn.init.constant_(model.weight, value)
    ...     ema.update(model)
    >>> round(ema.average()["weight"].item(), 4)  # 11 - 11 * 2/11 * 3/12
    10.5
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay}: use a number from 0 to below 1")
        self.decay = decay
        self.model = AveragedModel(model, multi_avg_fn=self._take_in).float().requires_grad_(False)

    def __bool__(self) -> bool:
        return True  # before the first weights it has those that the model began with

    def update(self, model: nn.Module) -> None:
        """Take in the model's weights."""
        self.model.to(next(model.parameters()).device).update_parameters(model)

    def _take_in(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        decay = decay_at(int(updates) + 1, self.decay)
        get_ema_multi_avg_fn(decay)(averages, [weight.float() for weight in weights], updates)

    def average(self) -> Weights:
        return {name: parameter.detach() for name, parameter in self.model.module.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.average(), "updates": int(self.model.n_averaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Errors: RunError for the state of an earlier version, whose shares were others."""
        if "updates" not in state:
            raise RunError(
                "the exponential average in this checkpoint is of an earlier version, which kept most of the first "
                "weights, and cannot be gone on with: train afresh with --overwrite"
            )
        self.model.n_averaged.fill_(int(state["updates"]))
        put_weights(self.model.module, state["weights"])


def decay_at(update: int, decay: float) -> float:
    """d_n of the n-th weights, n >= 1.

    >>> decay_at(9, 0.999), decay_at(100_000, 0.999)
    (0.5, 0.999)
    """
    return min(decay, update / (update + 9))


def ema_horizon(updates: int, decay: float) -> float:
    """1 / (1 - d_n), the updates that the average reaches back after n of them.

    >>> round(ema_horizon(256, 0.999), 1), round(ema_horizon(100_000, 0.999), 1)
    (29.4, 1000.0)
    """
    return 1 / (1 - decay_at(updates, decay))


def ema_shares(updates: int, decay: float) -> np.ndarray:
    """The share of each of so many weights in their exponential average, warmed up. -> float64 (updates,), sums to 1

    >>> ema_shares(3, 0.5).round(4).tolist()  # with decays 2/11 and 3/12
    [0.0455, 0.2045, 0.75]
    """
    kept = np.array([1.0, *(decay_at(update, decay) for update in range(2, updates + 1))])  # of those before
    new = np.append(1.0, 1 - kept[1:])
    return np.asarray(new * np.append(np.cumprod(kept[:0:-1])[::-1], 1.0))


def weighted_mean(weights: Iterable[Mapping[str, Tensor]], shares: Iterable[float]) -> Weights:
    """The sum of share times weight, float64, over any number of sets of weights, one at a time in memory.

    >>> [one] = weighted_mean([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [0.25, 0.75]).values()
    >>> one
    tensor([2.5000], dtype=torch.float64)
    """
    found: Weights = {}
    for each, share in zip(weights, shares, strict=True):
        for name, weight in each.items():
            part = weight.detach().to("cpu", torch.float64) * share
            found[name] = found[name] + part if name in found else part
    return found


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

    def __bool__(self) -> bool:
        return bool(self.kept)

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
