"""`fluxentropy grpo`: a task with a checker in, a policy trained by GRPO out.

options.py     options, section by section
tasks.py       problems and their checkers
policies.py    the policy: a new small GPT, or any decoder, whole or by LoRA
rollouts.py    problems -> sampled responses with their log-probabilities; pass@k
loss.py        pure: advantages, clipping, KL, values of tokens
experiment.py  what a run is made of; its warm-up
update.py      the gradient of a step, what is logged of it, and the probe around it
module.py      all of it in Lightning, with its callbacks
figures.py     the pictures of a finished run
grpo.py        the command
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "GRPOConfig": "options",
        "Problem": "tasks",
        "open_policy": "policies",
        "open_task": "tasks",
        "pass_at_k": "rollouts",
    },
)
