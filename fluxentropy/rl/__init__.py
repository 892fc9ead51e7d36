"""Reinforcement learning, with the entropy of the policy in view.

    probe/    how a step changes a policy's entropy, and why
    control/  controllers of the entropy
    grpo/     `fluxentropy grpo`: the reference implementation
    trl.py    a callback for TRL's GRPOTrainer (extra `trl`)

Around an optimizer step of your own, with a batch that the policy sampled and the update does not use:

    from fluxentropy.rl import EntropyProbe
    from fluxentropy.rl.probe import Sampler, responses

    batch = responses(prompt_ids, tokens, eos=eos, sampler=Sampler(temperature=1.0))
    probe = EntropyProbe(policy, batch, optimizer=optimizer)
    loss.backward()
    optimizer.step()
    record = probe.measure()  # what the step did to the entropy, measured and predicted

In TRL's trainer: `trainer.add_callback(EntropyProbeCallback(trainer, held_out_prompts, every=10))`.
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "EntropyProbe": "probe.probe",
        "EntropyProbeCallback": "trl",
        "ProbeRecord": "probe.probe",
        "RecordingGRPOTrainer": "trl",
        "open_controller": "control.control",
    },
)
