"""A GPT that is trained on a binned corpus under a schedule, resumable to the exact step.

options.py     options of `pretrain`, section by section; learning rates over tokens
gpt.py         the GPT
optim.py       Muon and AdamW as one optimizer; averages of weights
trainer.py     a GPT under a plan of blocks, in Lightning
callbacks.py   what happens at the end of a step
loader.py      blocks -> batches of tensors; short pieces first
validation.py  losses of bins and of sources on held-out blocks
trunk.py       given weights that a training starts from; branches of a run
ledger.py      what each step saw
export.py      a GPT -> a model folder of transformers, and back
averages.py    `fluxentropy average`: a mean of checkpoints
pretrain.py    `fluxentropy pretrain`, and `fluxentropy ledger`: what became of each document
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "GPT": "gpt",
        "GPTConfig": "gpt",
        "Ledger": "ledger",
        "PretrainConfig": "options",
        "build_optimizer": "optim",
        "export": "export",
        "from_export": "export",
    },
)
