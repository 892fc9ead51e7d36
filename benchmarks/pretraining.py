"""How fast `pretrain` is, against the same architecture and optimizer in a plain PyTorch loop, and what schedules cost.

    python benchmarks/pretraining.py --bins BINS [--steps 60] [--rounds 3] [--config configs/pretrain/debug.yaml]

BINS is a folder that `bin --tokenize` wrote. In each round, in turns: the plain loop, whose batches are in memory, and
`pretrain` under several schedules; each is timed over its steps, without start-up, validation and checkpoints. Printed
are medians, and the share of a step that the trainer waited for blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fluxentropy.pretraining.optim import build_optimizer, scale_learning_rates
from fluxentropy.pretraining.options import PretrainConfig
from fluxentropy.pretraining.pretrain import make_model, open_training, pretrain, read_config
from fluxentropy.runs.tables import read_metrics
from fluxentropy.schedules.options import ScheduleConfig

SCHEDULES = ("random", "increasing", "periodic", "tilt")
WARM_UP = 5  # steps that are not timed


def plain_loop(config: PretrainConfig) -> float:
    """Tokens per second of a loop without any framework."""
    training = open_training(config)
    model = make_model(config, training.blocks)
    optimizer = build_optimizer(model, config.optim)
    batches = [torch.from_numpy(training.blocks.gather(training.sampler.batch(step))) for step in range(training.steps)]
    parts = training.parts
    started, tokens = 0.0, 0
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            started = time.perf_counter()
        scale_learning_rates(optimizer, training.learning_rate(step))
        for ids in batch.chunk(parts):
            (model(ids[:, :-1], ids[:, 1:]) / parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch[:, 1:].numel() if step >= WARM_UP else 0
    return tokens / (time.perf_counter() - started)


def trained(config: PretrainConfig) -> tuple[float, float]:
    """Tokens per second of `pretrain`, and the share of its time that it waited for blocks."""
    pretrain(config)
    rows = read_metrics(config.out / "timings.csv")
    seconds = rows["seconds"][1:]  # the first holds the warm-up
    tokens, waited = (float(seconds @ rows[name][1:]) for name in ("tokens_per_second", "waiting_for_blocks"))
    return tokens / float(seconds.sum()), waited / float(seconds.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/pretrain/debug.yaml"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    from fluxentropy.schedules.dataset import BlockSet

    length = BlockSet.open(args.bins).length
    with tempfile.TemporaryDirectory() as folder:
        base = read_config(args.config, bins=args.bins, out=Path(folder))
        tokens = args.steps * base.batch_size * length
        never = {"eval_every": tokens * 2, "checkpoint_every": args.steps * 2, "log_every": WARM_UP}
        base = dataclasses.replace(base, tokens=tokens, **never)
        rates: dict[str, list[float]] = {name: [] for name in ("plain loop", *SCHEDULES)}
        waits: dict[str, list[float]] = {name: [] for name in SCHEDULES}
        for number in range(args.rounds):
            rates["plain loop"].append(plain_loop(base))
            for name in SCHEDULES:
                out = Path(folder) / f"{name}-{number}"
                rate, waited = trained(dataclasses.replace(base, schedule=ScheduleConfig(name=name), out=out))
                rates[name].append(rate)
                waits[name].append(waited)
    plain = statistics.median(rates["plain loop"])
    for name, found in rates.items():
        rate = statistics.median(found)
        wait = f"  waiting {statistics.median(waits[name]):.2%}" if name in waits else ""
        print(f"{name:<12}{rate:10,.0f} tok/s  {rate / plain:5.2f} x{wait}")


if __name__ == "__main__":
    main()
