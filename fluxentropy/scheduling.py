"""`fluxentropy schedule`: what a schedule will draw from each bin, as a table and a picture, before any training."""

from __future__ import annotations

from typing import Any

import numpy as np

from fluxentropy.adaptive import Adaptive
from fluxentropy.binset import Bins
from fluxentropy.blockset import BlockSet
from fluxentropy.config import PlanConfig
from fluxentropy.jsonvalues import plain
from fluxentropy.outcome import Outcome
from fluxentropy.plan import Plan
from fluxentropy.sampler import open_sampler
from fluxentropy.store import write_json
from fluxentropy.yamlfile import to_plain

TENTHS = 10


def schedule(config: PlanConfig) -> Outcome:
    """Plan a training, draw the plan into `config.out`, and say what it is."""
    from fluxentropy.schedule_figure import draw_plan

    blocks = BlockSet.open(config.bins)
    plan = open_sampler(config, blocks).plan
    bins = Bins.read(config.bins)
    by = bins.label if bins else "score"
    figures = draw_plan(plan, config.out / "mixture", tokens_per_block=blocks.length, by=by)
    record = {"config": to_plain(config.schedule), **_record(plan, blocks.length)}
    write_json(config.out / "mixture.json", record)
    lines = [*_headline(plan, config, blocks.length), "", *table(plan), ""]
    lines += [f"picture    {figures[0]} (and .svg)", f"numbers    {config.out / 'mixture.json'}"]
    return Outcome(lines=lines, data={"out": str(config.out), **record})


def _record(plan: Plan, length: int) -> dict[str, Any]:
    """The plan in numbers: `mixture` is that of each tenth of what is planned, K numbers each."""
    return plain(
        {
            "kind": "reweighting" if isinstance(plan.schedule, Adaptive) else plan.schedule.kind,
            "steps": plan.steps,
            "planned_steps": plan.known,
            "tokens": plan.blocks * length,
            "blocks": plan.sizes,
            "drawn": plan.counts[-1],
            "marginal": plan.marginal,
            "epochs": plan.epochs,
            "mixture": plan.realised(TENTHS),
            "fingerprint": plan.fingerprint,
        }
    )


def _headline(plan: Plan, config: PlanConfig, length: int) -> list[str]:
    name = config.schedule.name + ", a static mixture like it" * config.schedule.static
    kind = "reweighting" if config.schedule.static else plan.schedule.kind
    lines = [
        f"{name} ({kind}): {plan.steps:,} steps of {int(plan.batches[0]):,} blocks of {length:,} tokens, "
        f"{plan.blocks * length:,} tokens, {plan.blocks / plan.sizes.sum():.3g} epochs"
    ]
    asked = config.tokens // length if config.tokens is not None else int(plan.sizes.sum())
    if plan.blocks < asked:
        lines.append(f"it stops after {plan.blocks:,} of {asked:,} blocks, where a bin is used up (--exhausted stop)")
    if plan.known < plan.steps:
        lines.append(f"planned are the first {plan.known:,} steps; then the mixture follows the losses of the bins")
    return lines


def table(plan: Plan) -> list[str]:
    """Lines of a table: a row for each bin, a column for each tenth of what is planned.

    >>> from fluxentropy.orders import Increasing
    >>> from fluxentropy.plan import make_plan
    >>> print("\\n".join(table(make_plan(Increasing(), [40, 60], batch_size=2))))
    share of each bin (%), by the tenth of the budget
     bin  blocks    .0    .1    .2    .3    .4    .5    .6    .7    .8    .9    all  epochs
       0      40   100   100   100   100     0     0     0     0     0     0     40    1.00
       1      60     0     0     0     0   100   100   100   100   100   100     60    1.00
    """
    mixture = 100 * plan.realised(TENTHS)
    width = max(len(f"{int(plan.sizes.max()):,}"), 6)
    tenths = "".join(f"{f'.{tenth}':>6}" for tenth in range(TENTHS))
    lines = [
        "share of each bin (%), by the tenth of the budget",
        f" bin  {'blocks':>{width}}{tenths}    all  epochs",
    ]
    for number, size in enumerate(plan.sizes.tolist()):
        cells = "".join(f"{_percent(share):>6}" for share in mixture[:, number])
        total = _percent(100 * plan.marginal[number])
        lines.append(f"{number:4}  {size:>{width},}{cells}{total:>7}{plan.epochs[number]:8.2f}")
    return lines


def _percent(share: float) -> str:
    """`12`, `0.3`, `0`, and a dash for a part without steps."""
    if np.isnan(share):
        return "-"
    return f"{share:.0f}" if share >= 1 or share == 0 else f"{share:.1f}" if share >= 0.05 else "<.1"
