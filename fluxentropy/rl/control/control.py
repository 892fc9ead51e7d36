"""Controllers of a policy's entropy during GRPO, by name: from `{"name": "clip_cov", "ratio": 2e-4}` to the object.

    plan = controller.plan(batch, generator)     # once an optimizer step, the whole batch: how the loss changes
    ...                                          # gradient over micro-batches, optimizer step
    if controller.adjusts:
        answer = controller.adjust(view)         # how the step changes: a factor of it, or another step
        apply(module, before, answer)

A controller sees the batch of an optimizer step, never a micro-batch: how rows are spread over micro-batches or
devices changes nothing. Its state goes into checkpoints, so that a resumed run plans the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluxentropy.config.yaml import check_mapping, did_you_mean, from_plain
from fluxentropy.errors import UsageError
from fluxentropy.rl.control.base import Base
from fluxentropy.rl.control.ours import Follow, Guard, Project
from fluxentropy.rl.control.published import (
    AsymmetricClip,
    Bonus,
    ClipBatch,
    ClipCov,
    ClipVocabulary,
    KLCov,
    NoControl,
    Siren,
    Steer,
)
from fluxentropy.rl.probe.policy import Parameters

CONTROLLERS: dict[str, type[Base]] = {
    controller.name: controller
    for controller in (
        NoControl,
        Bonus,
        AsymmetricClip,
        ClipCov,
        KLCov,
        ClipBatch,
        ClipVocabulary,
        Steer,
        Siren,
        Follow,
        Project,
        Guard,
    )
}


def open_controller(options: Mapping[str, Any]) -> Base:
    """The controller `options["name"]` ("none" where it is missing) with the other options.

    Errors: `UsageError` names an unknown controller, an option that it does not take, and a bad value.

    >>> open_controller({"name": "clip_cov", "ratio": 1e-3})
    ClipCov(ratio=0.001, low=1.0, high=5.0)
    """
    given = dict(options)
    name = str(given.pop("name", "none"))
    if name not in CONTROLLERS:
        raise UsageError(f"controller.name {name}{did_you_mean(name, CONTROLLERS)}")
    cls = CONTROLLERS[name]
    takes = [f.name for f in fields(cls) if f.init]
    for option in given:
        if option not in takes:
            said = did_you_mean(str(option), takes) if takes else ", which takes no options"
            raise UsageError(f"controller.{option}: no such option of {name}{said}")
    check_mapping(given, cls, Path("controller"), "")
    controller: Base = from_plain(cls, given)
    return controller


def apply(module: nn.Module, before: Parameters, answer: float | Parameters) -> None:
    """Move the parameters from `before` as `adjust` answered, in place; a factor of 1 leaves them bit by bit."""
    if answer == 1.0:
        return
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in before:
                old = before[name]
                parameter.copy_(old + (answer[name] if isinstance(answer, dict) else float(answer) * (parameter - old)))
