"""One optimizer for a GPT: Muon for the matrices of its blocks, AdamW for everything else.

It is one object because a trainer counts a step for each optimizer that it has. The mathematics are those of
`torch.optim.Muon` (Jordan 2024, https://kellerjordan.github.io/posts/muon) and `torch.optim.AdamW` (Loshchilov and
Hutter 2019, arXiv:1711.05101), which it holds and which work on its own groups and state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from fluxentropy.optimconfig import OptimConfig

ROLES = ("matrix", "embedding", "head", "gain")


class MuonAdamW(Optimizer):
    """Both optimizers as one: `muon` and `adamw` are the keyword arguments of each one's groups of parameters."""

    def __init__(self, muon: Iterable[dict[str, Any]], adamw: Iterable[dict[str, Any]]) -> None:
        self.parts = (Muon(list(muon)), AdamW(list(adamw)))
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
