"""Controllers of a policy's entropy during GRPO.

base.py       what a controller sees and may change
published.py  clipping, covariance, bonuses: controllers of papers, each with its source
ours.py       controllers that use the predicted change of the entropy
control.py    names -> controllers
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Base": "base",
        "StepView": "base",
        "TokenBatch": "base",
        "open_controller": "control",
    },
)
