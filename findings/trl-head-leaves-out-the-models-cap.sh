#!/bin/sh
# TRL 1.16.0 computes log-probabilities and entropies from the head's weights by itself, not by the model's forward.
#
# Its trainers, GRPOTrainer among them, give the model a fused head: hidden states of the backbone times the weights of
# the head, then what the configuration says under certain names (final_logit_softcapping, logit_scale and some more).
# What a model's own forward does to its logits under another name, such as a soft cap called logit_cap, is left out,
# without a warning: responses are sampled from one distribution (generate runs the forward), and the loss and the
# logged entropy are those of another. One would have expected a trainer to call the model that it is given, or to
# compare the two once.
# Where it bit us: our exported models cap their logits; the logged entropy was 1.8836 for a true 2.0287 nats.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 trl==1.16.0
"$here/env/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")))


class Capped(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output


def entropies(name):
    """Mean entropy of the model's own logits, and of TRL's fused head, with the cap in the configuration as `name`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3, **{name: 2.0},
    )
    model = Capped(config).eval()
    ids = torch.randint(3, 40, (2, 20))
    with torch.no_grad():
        logp = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True)
    return float(-(logp.exp() * logp).sum(-1).mean()), float(fused.entropy.mean())


seen = {name: entropies(name) for name in ("logit_cap", "final_logit_softcapping")}
for name, (own, fused) in seen.items():
    print(f"the cap is called {name}: entropy of the model's logits {own:.4f}, of TRL's head {fused:.4f}")
other, known = (abs(own - fused) for own, fused in seen.values())
stands = other > 0.1 and known < 1e-3
print("the behaviour stands" if stands else "the behaviour has changed")
sys.exit(0 if stands else 1)
PYTHON
