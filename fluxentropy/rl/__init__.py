"""How a policy's entropy changes while it is trained by reinforcement learning.

Around an optimizer step of your own, with a batch that the policy sampled and the update does not use:

    from fluxentropy.rl import EntropyProbe
    from fluxentropy.rl.entropy import Sampler, responses

    batch = responses(prompt_ids, tokens, eos=eos, sampler=Sampler(temperature=1.0))
    probe = EntropyProbe(policy, batch, optimizer=optimizer)
    loss.backward()
    optimizer.step()
    record = probe.measure()  # what the step did to the entropy, measured and predicted

In TRL's trainer (needs the extra `trl`):

    from fluxentropy.rl import EntropyProbeCallback

    trainer.add_callback(EntropyProbeCallback(trainer, held_out_prompts, every=10))

`fluxentropy.rl.entropy` has every formula by itself. A name imports its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxentropy.rl.probe import EntropyProbe as EntropyProbe
    from fluxentropy.rl.proberecord import ProbeRecord as ProbeRecord
    from fluxentropy.rl.trl_callback import EntropyProbeCallback as EntropyProbeCallback
    from fluxentropy.rl.trl_trainer import RecordingGRPOTrainer as RecordingGRPOTrainer

__all__ = ["EntropyProbe", "EntropyProbeCallback", "ProbeRecord", "RecordingGRPOTrainer"]

_MODULES = {
    "EntropyProbe": "fluxentropy.rl.probe",
    "EntropyProbeCallback": "fluxentropy.rl.trl_callback",
    "ProbeRecord": "fluxentropy.rl.proberecord",
    "RecordingGRPOTrainer": "fluxentropy.rl.trl_trainer",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
