"""What a probe of the entropy costs, as a multiple of one training step, on a small transformer.

    python benchmarks/probe.py [--rounds 5] [--width 128] [--layers 4] [--out bench]

The training step is the policy-gradient update alone, without sampling: forward, backward, clipping and AdamW over 32
responses of 32 tokens. The probe's batch has the same number of responses (16 prompts with 2 each). Every part runs
alone and interleaved with the others; printed are medians of CPU time (all threads, so it counts work, not waiting; on
a GPU wall-clock time), as a multiple of the step and of one forward pass over the batch, and the part's stated cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fluxentropy.rl import probe as rl
from fluxentropy.runs.files import write_json

PROMPT, LENGTH, VOCABULARY = 16, 32, 512
NORM = float(LENGTH)


def batch(prompts: int, group: int, seed: int, device: str) -> rl.Responses:
    """Random responses of full length: the cost does not depend on which."""
    rng = torch.Generator().manual_seed(seed)
    texts = torch.randint(0, VOCABULARY, (prompts, PROMPT), generator=rng).tolist()
    tokens = torch.randint(0, VOCABULARY, (prompts, group, LENGTH), generator=rng).to(device)
    return rl.responses(texts, tokens, advantages=torch.randn(prompts, group, generator=rng).to(device))


def forward(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the responses' tokens, as a trainer takes them. (N, L)"""
    logits = model(ids, use_cache=False).logits[:, PROMPT - 1 : -1].float()
    return logits.log_softmax(-1).gather(2, ids[:, PROMPT:, None])[..., 0]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, update: rl.Responses) -> None:
    """One update of the policy."""
    assert update.advantages is not None
    optimizer.zero_grad()
    logp = forward(model, update.ids.flatten(0, 1))
    loss = -(update.advantages.flatten()[:, None] * logp).sum() / (NORM * len(logp))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def sample(model: Any, update: rl.Responses) -> None:
    """As many responses as the update has, with a key-value cache."""
    prompts = update.ids[..., :PROMPT].flatten(0, 1)
    model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
        min_new_tokens=LENGTH, max_new_tokens=LENGTH, pad_token_id=0,
    )  # fmt: skip


def seconds(work: Callable[[], object], device: str) -> float:
    """CPU time of one call; wall-clock time where the work is not done by the CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Print the table, and with --out write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for probe.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=args.width, intermediate_size=4 * args.width, num_hidden_layers=args.layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=PROMPT + LENGTH,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(args.device).eval()  # no dropout, so that training mode changes nothing
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    entropy_batch, update = batch(16, 2, 0, args.device), batch(8, 4, 1, args.device)
    train(model, optimizer, update)

    def probe(parts: list[rl.Part]) -> None:
        found = rl.EntropyProbe(
            model, entropy_batch, optimizer=optimizer, update=update, norm=NORM, parts=parts, sketch=8
        )
        train(model, optimizer, update)
        found.measure()

    def without_gradients() -> None:
        with torch.no_grad():
            forward(model, entropy_batch.ids.flatten(0, 1))

    work: dict[str, Callable[[], object]] = {
        "step": lambda: train(model, optimizer, update),
        "sampling": lambda: sample(model, update),
        "forward": without_gradients,
        "entropy": lambda: probe([]),
        "default": lambda: probe(["measured", "split", "range", "second_order"]),
    } | {part: lambda part=part: probe([part]) for part in rl.PARTS}  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.rounds):
        for name, call in work.items():
            times[name].append(seconds(call, args.device))
    median = {name: statistics.median(values) for name, values in times.items()}
    step, one = median["step"], median["forward"]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {args.rounds} rounds")
    in_steps = {name: f"{median[name] / step:.2f} steps" for name in ("forward", "sampling")}
    print(f"a step {1e3 * step:.0f} ms, a forward pass {in_steps['forward']}, sampling {in_steps['sampling']}")
    print(f"{'part':14}{'× a step':>10}{'forward passes':>16}{'stated':>8}")
    table = {}
    for name in [n for n in work if n not in ("step", "sampling", "forward")]:
        base = step if name in ("entropy", "default") else median["entropy"]  # a part without the rest
        cost = median[name] - base
        stated = rl.COSTS.get(name)
        table[name] = {"steps": cost / step, "forward_passes": cost / one}
        print(f"{name:14}{cost / step:10.2f}{cost / one:16.1f}{'' if stated is None else f'{stated:8g}'}")
    if args.out is not None:
        write_json(args.out / "probe.json", {"parameters": parameters, "seconds": median, "table": table})


if __name__ == "__main__":
    main()
