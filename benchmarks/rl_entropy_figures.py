"""The figures of docs/rl-entropy.md: every estimator on policies so small that the truth is known.

    python benchmarks/rl_entropy_figures.py [--out docs/images]

A recurrent policy over four tokens answers each of four prompts with at most four tokens; its 121 responses to a prompt
are all enumerated, so "exact" in the figures means exactly that. Takes about a minute.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fluxentropy.figures import GREY, SINGLE, model_look, new_figure, paper, save
from fluxentropy.rl import probe as rl
from fluxentropy.rl.probe.change import Reweighting, expansion_terms

V, LIMIT, EOS = 4, 4, 0
PROMPTS = [[1], [2, 3], [3, 3, 1], [2]]
BLUE, ORANGE, GREEN, PINK = (look.colour for look in model_look(["a", "b", "c", "d"]))


class Recurrent(nn.Module):
    """ids (n, W) -> logits (n, W, V), float64."""

    def __init__(self, seed: int, width: int = 4) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64))

        self.embedding, self.carry = random(V, width), random(width, width)
        self.head, self.bias = random(width, V), random(V)

    def forward(self, ids: Tensor) -> Tensor:
        state = torch.zeros(len(ids), self.carry.shape[0], dtype=torch.float64)
        states = []
        for column in ids.T:
            state = torch.tanh(state @ self.carry + self.embedding[column])
            states.append(state)
        return torch.stack(states, 1) @ self.head + self.bias


class Toy:
    """A policy with every response to every prompt: exact numbers and samples."""

    def __init__(self, seed: int = 15) -> None:
        self.model = Recurrent(seed)
        self.policy = rl.Policy(self.model)
        texts = [
            [*tokens, *[EOS] * (LIMIT - len(tokens))]
            for length in range(1, LIMIT + 1)
            for tokens in itertools.product(range(V), repeat=length)
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == LIMIT)
        ]
        self.tokens = torch.tensor(texts)
        self.every = rl.responses(PROMPTS, self.tokens.expand(len(PROMPTS), -1, -1), eos=EOS)
        self.rewards = torch.randn(len(texts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def stats(self) -> rl.SequenceStats:
        return rl.sequence_stats(self.policy, self.every, rows=10**6)

    def chance(self) -> Tensor:
        """π of every response, (prompts, responses)."""
        return self.stats().logp.sum(-1).exp()

    def entropy(self) -> float:
        return float((self.chance() * -self.stats().logp.sum(-1)).sum(1).mean())

    def sample(self, B: int, G: int, rng: torch.Generator) -> rl.Responses:
        n = torch.randint(0, len(PROMPTS), (B,), generator=rng)
        i = torch.multinomial(self.chance()[n], G, replacement=True, generator=rng)
        gains = rl.leave_one_out_advantages(self.rewards[i]) if G > 1 else self.rewards[i]
        return rl.responses([PROMPTS[k] for k in n], self.tokens[i], eos=EOS, advantages=gains)

    def at(self, step: rl.Parameters, eta: float) -> Toy:
        moved = copy.deepcopy(self)
        with torch.no_grad():
            for name, p in moved.model.named_parameters():
                p.add_(step[name], alpha=eta)
        return moved

    def ascend(self, update: rl.Responses, optimizer: torch.optim.Optimizer) -> None:
        assert update.advantages is not None
        weights = rl.update_weights(update.advantages, update.mask, norm=float(LIMIT))
        gradient = rl.weighted_gradient(self.policy, update, weights)
        optimizer.zero_grad()
        for name, p in self.model.named_parameters():
            p.grad = -gradient[name]
        optimizer.step()


def entropy_figure() -> Figure:
    """Var(Σ H_k) / Var(-S) for many policies."""
    ratios = []
    for seed in range(200):
        toy = Toy(seed)
        p, stats = toy.chance() / len(PROMPTS), toy.stats()
        spread = [((p * x**2).sum() - (p * x).sum() ** 2) for x in (stats.entropy.sum(-1), stats.logp.sum(-1))]
        ratios.append(float(spread[0] / spread[1]))
    figure = new_figure(SINGLE, 2.1)
    axes = figure.add_subplot()
    axes.hist(ratios, bins=np.arange(0, max(ratios) + 0.05, 0.05).tolist(), color=BLUE)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set(xlabel="Var(Σ H) / Var(−S), exact", ylabel="policies of 200")
    return figure


def gradient_figure() -> Figure:
    """tr Cov(X) of each form, G = 1, exact."""
    toy = Toy()
    stats, mask, p = toy.stats(), toy.every.mask.double(), toy.chance()
    S, H = stats.logp.sum(-1), stats.entropy.sum(-1)
    togo = rl.entropy_to_go(stats.entropy)
    alive = p[..., None] * mask
    mu = (alive * togo).sum((0, 1)) / alive.sum((0, 1))
    mean = (p * S).sum(1, keepdim=True)
    forms = {
        "score": rl.Weights(-S[..., None] * mask),
        "score − mean": rl.Weights(-(S - mean)[..., None] * mask),
        "whole Σ H": rl.Weights(H[..., None] * mask, mask),
        "to-go": rl.Weights(togo * mask, mask),
        "to-go − μ": rl.Weights((togo - mu) * mask, mask),
    }
    traces = []
    for weights in forms.values():
        X = rl.row_gradients(toy.policy, toy.every, weights, rows=10**6)
        q = p[..., None] / len(PROMPTS)
        traces.append(float(((q * X**2).sum((0, 1)) - (q * X).sum((0, 1)) ** 2).sum()))
    figure = new_figure(SINGLE, 1.9)
    axes = figure.add_subplot()
    axes.barh(list(forms)[::-1], traces[::-1], color=[BLUE] * 3 + [ORANGE] * 2)  # from below
    for k, trace in enumerate(traces[::-1]):
        axes.text(trace, k, f" {trace:.3g}", va="center", fontsize=7)
    axes.set(xlabel="tr Cov(X), one response, exact", xlim=(0, max(traces) * 1.12))
    axes.tick_params(axis="y", length=0)
    return figure


def _run(steps: int, seed: int = 0) -> list[tuple[rl.ProbeRecord, float]]:
    """Real AdamW steps: the probe's record and the exact change of each."""
    toy, rng = Toy(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(toy.model.parameters(), lr=0.02, weight_decay=0.1)
    found = []
    for _ in range(steps):
        update, batch = toy.sample(16, 4, rng), toy.sample(48, 2, rng)
        probe = rl.EntropyProbe(toy.model, batch, optimizer=optimizer, rows=10**6)
        before = toy.entropy()
        toy.ascend(update, optimizer)
        found.append((probe.measure(), toy.entropy() - before))
    return found


def split_figure(run: list[tuple[rl.ProbeRecord, float]]) -> Figure:
    """First-order change by AdamW's parts, cumulated."""
    figure = new_figure(SINGLE, 2.2)
    axes = figure.add_subplot()
    steps = np.arange(1, len(run) + 1)
    for name, colour in (("batch", BLUE), ("momentum", ORANGE), ("decay", GREEN)):
        parts = [record.split[name].per_sequence.value for record, _ in run if record.split]
        axes.plot(steps, np.cumsum(parts), color=colour, label=name)
    axes.plot(steps, np.cumsum([exact for _, exact in run]), color="black", linewidth=0.8, label="exact change")
    axes.set(xlabel="step", ylabel="change so far, nats a sequence")
    axes.legend()
    return figure


def kernel_figure() -> Figure:
    """K₁ between 24 sampled responses, sorted by prompt, and its spectrum."""
    toy, rng = Toy(), torch.Generator().manual_seed(1)
    i = torch.multinomial(toy.chance(), 6, replacement=True, generator=rng)
    batch = rl.responses(PROMPTS, toy.tokens[i], eos=EOS)
    F = rl.fisher_gradients(toy.policy, batch, rows=10**6)
    found = rl.kernel_statistics(F @ F.T, torch.arange(4).repeat_interleave(6))
    figure = new_figure(2 * SINGLE, 2.6)
    left, right = figure.subplots(1, 2)
    top = float((F @ F.T).abs().max())
    image = left.imshow(F @ F.T, cmap="RdBu_r", vmin=-top, vmax=top)
    for edge in (5.5, 11.5, 17.5):
        left.axhline(edge, color="black", linewidth=0.4)
        left.axvline(edge, color="black", linewidth=0.4)
    left.set(xticks=[], yticks=[], xlabel="responses, six to each of four prompts")
    figure.colorbar(image, ax=left, label="K₁")
    values = found.eigenvalues.clamp(min=1e-12)
    right.semilogy(range(1, 25), values, "o-", markersize=3, color=BLUE)
    right.yaxis.set_major_formatter("{x:g}")
    right.set(xlabel="eigenvalue, by size", ylim=(1e-3 * float(values[0]), 2 * float(values[0])))
    right.set_title(f"effective rank {found.effective_rank:.1f}", loc="right")
    return figure


def u_statistic_figure() -> Figure:
    """U and V over many batches of B prompts, against the truth."""
    toy, rng, sizes = Toy(), torch.Generator().manual_seed(0), (4, 8, 16, 32, 64)
    gradients = rl.row_gradients(toy.policy, toy.every, rl.Weights(toy.every.mask.double()), rows=10**6)
    S, p, G, draws = toy.stats().logp.sum(-1), toy.chance(), 4, 400
    means: dict[str, list[list[float]]] = {"U": [], "V (n = m kept)": []}
    for B in sizes:
        n = torch.randint(0, len(PROMPTS), (draws * B,), generator=rng)
        i = torch.multinomial(p[n], G, replacement=True, generator=rng)
        gains = rl.leave_one_out_advantages(toy.rewards[i])
        s = S[n[:, None], i]
        x = -(s - rl.leave_one_out(s)) / G
        X, Y = ((w[..., None] * gradients[n[:, None], i]).sum(1).view(draws, B, -1) for w in (x, gains / G))
        dots = X @ Y.mT
        for name, values in (("U", rl.multi_prompt_u(dots).value), ("V (n = m kept)", dots.mean((-1, -2)))):
            means[name].append([float(values.mean()), float(values.std())])
    centred = S - (p * S).sum(1, keepdim=True)
    truth = -((p * centred)[..., None] * gradients).sum(1).mean(0) @ (
        ((p * toy.rewards)[..., None] * gradients).sum(1).mean(0)
    )
    figure = new_figure(SINGLE, 2.3)
    axes = figure.add_subplot()
    for shift, (name, rows), colour in zip((0.96, 1.04), means.items(), (BLUE, ORANGE), strict=True):
        mean, spread = np.array(rows).T
        axes.errorbar(np.array(sizes) * shift, mean, spread, fmt="o", markersize=3, color=colour, label=name, capsize=2)
    axes.axhline(float(truth), color="black", linewidth=0.8, label="exact")
    axes.set(xscale="log", xlabel="prompts B", ylabel="change / η, mean ± sd")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.legend()
    return figure


def two_batch_figure() -> Figure:
    """What the stated variance says and what many batches show, as the batches grow."""
    toy, rng, sizes, draws, G = Toy(), torch.Generator().manual_seed(0), (2, 4, 8, 16, 32), 600, 2
    stats, mask = toy.stats(), toy.every.mask.double()
    togo = rl.entropy_to_go(stats.entropy)
    x_rows = rl.row_gradients(toy.policy, toy.every, rl.Weights((togo - togo.mean((0, 1))) * mask, mask), rows=10**6)
    y_rows = rl.row_gradients(toy.policy, toy.every, rl.Weights(mask), rows=10**6)
    p = toy.chance()
    rows = []
    for B in sizes:
        pair = []
        for table in (x_rows, y_rows):
            n = torch.randint(0, len(PROMPTS), (draws * B,), generator=rng)
            i = torch.multinomial(p[n], G, replacement=True, generator=rng)
            weights = rl.leave_one_out_advantages(toy.rewards[i])[..., None] if table is y_rows else 1.0
            pair.append((weights * table[n[:, None], i]).mean(1).view(draws, B, -1))
        found = rl.two_batch(pair[0] @ pair[1].mT)
        stated = [found.variance.mean(), found.conservative_variance.mean(), found.entropy_variance.mean()]
        rows.append([float(found.value.std()), *(float(x) ** 0.5 for x in stated)])
    shown, unbiased, conservative, entropy = np.array(rows).T
    figure = new_figure(SINGLE, 2.3)
    axes = figure.add_subplot()
    axes.loglog(sizes, shown, "o", color="black", markersize=4, label="sd of 600 estimates")
    axes.loglog(sizes, conservative, color=ORANGE, label="√(V_X + V_Y)")
    axes.loglog(sizes, unbiased, color=BLUE, label="√(V_X + V_Y − trace)")
    axes.loglog(sizes, entropy, color=GREEN, linestyle="--", label="√V_X, the step known")
    axes.set(xlabel="prompts in each batch", ylabel="change / η, standard error")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    return figure


def _direction(toy: Toy) -> rl.Parameters:
    """A policy-gradient step of unit length: the direction of the figures of range."""
    update = toy.sample(64, 4, torch.Generator().manual_seed(5))
    assert update.advantages is not None
    weights = rl.update_weights(update.advantages, update.mask, norm=float(LIMIT))
    step = rl.weighted_gradient(toy.policy, update, weights, rows=10**6)
    size = float(rl.flatten(step).norm())
    return {name: tensor / size for name, tensor in step.items()}


def snis_figure() -> Figure:
    """Spread of the measured change as the step grows, for both kinds of weights."""
    toy = Toy()
    v, p = _direction(toy), toy.chance()
    before = toy.stats()
    n = torch.randint(0, len(PROMPTS), (64,), generator=torch.Generator().manual_seed(0))
    etas = np.linspace(0.05, 2.5, 14)
    figure = new_figure(SINGLE, 2.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    draws = [
        torch.multinomial(p[n], 1, replacement=True, generator=torch.Generator().manual_seed(seed))
        for seed in range(100)
    ]
    shares = np.zeros(len(etas))
    kinds: tuple[tuple[Reweighting, str], ...] = (("sequence", ORANGE), ("prefix", BLUE))
    for kind, colour in kinds:
        spread = []
        for k, eta in enumerate(etas):
            after = toy.at(v, float(eta)).stats()
            values = []
            for i in draws:
                old, new = (rl.SequenceStats(*(x[n[:, None], i] for x in stats)) for stats in (before, after))
                mask = toy.every.mask[n[:, None], i]
                found = rl.measured_change(old, new, mask, weights=kind)
                values.append(found.per_sequence.value)
                shares[k] += found.effective_sample_size / found.responses / 2 / len(draws)
            spread.append(np.std(values))
        top.plot(etas, spread, color=colour, label=f"{kind} weights")
    top.set(ylabel="sd, nats a sequence", yscale="log")
    top.yaxis.set_major_formatter("{x:g}")
    top.legend()
    bottom.plot(etas, shares, color=GREY)
    bottom.set(xlabel="step length η", ylabel="ESS / n", ylim=(0, 1.05))
    return figure


def second_order_figure() -> Figure:
    """The exact entropy along a step, its expansions and the ghost radius; η* may be far outside."""
    toy = Toy()
    v, p = _direction(toy), toy.chance()
    value, one, two = rl.derivatives(toy.policy, toy.every, v, order=2, rows=10**6)
    terms = expansion_terms((value.entropy, one.entropy, two.entropy), (one.logp, two.logp), "prefix")
    first, second = (float((p * x).sum(1).mean()) for x in terms)
    ghost = float(rl.ghost_radius(toy.policy, toy.every, v, rows=10**6).min())
    star = 2 * abs(first / second)
    reach = 3 * ghost
    etas = np.linspace(-reach, reach, 81)
    H = toy.entropy()
    figure = new_figure(SINGLE, 2.4)
    axes = figure.add_subplot()
    exact = [toy.at(v, float(eta)).entropy() - H for eta in etas]
    axes.plot(etas, exact, color="black", label="exact")
    axes.plot(etas, first * etas, color=GREEN, label="first order")
    axes.plot(etas, first * etas + second * etas**2 / 2, color=BLUE, label="second order")
    for radius in (-ghost, ghost):
        axes.axvline(radius, color=GREY, linewidth=0.7, linestyle=":")
    low, high = min(exact), max(exact)
    room = high - low
    axes.set(xlabel="step length η", ylabel="change, nats a sequence", ylim=(low - 0.5 * room, high + 0.4 * room))
    axes.text(ghost, low - 0.45 * room, f" π/Δ = {ghost:.2f}", fontsize=7, color=GREY)
    axes.set_title(f"η* = {star:.1f}", loc="right")
    axes.legend()
    return figure


def probe_figure(run: list[tuple[rl.ProbeRecord, float]]) -> Figure:
    """Predicted and measured against the exact change of each step, with 95% intervals."""
    figure = new_figure(2 * SINGLE, 2.6)
    panels = figure.subplots(1, 2, sharey=True)
    exact = np.array([change for _, change in run])
    for axes, name, colour in zip(panels, ("predicted", "measured"), (BLUE, ORANGE), strict=True):
        pairs = [
            record.expansion.per_sequence.quadratic if name == "predicted" else record.measured.per_sequence
            for record, _ in run
            if record.expansion and record.measured
        ]
        values, errors = np.array(pairs).T
        inside = int((np.abs(values - exact) < 1.96 * errors).sum())
        axes.errorbar(exact, values, 1.96 * errors, fmt="o", markersize=2.5, linewidth=0.6, color=colour)
        ends = [min(exact), max(exact)]
        axes.plot(ends, ends, color="black", linewidth=0.6)
        axes.set_title(f"{name}: {inside} of {len(run)} intervals cover", loc="left")
        axes.set(xlabel="exact change, nats a sequence")
    panels[0].set(ylabel="estimate")
    return figure


def main() -> None:
    """Write every figure as a PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--only", help="one figure by name")
    args = parser.parse_args()
    run = _run(50) if args.only in (None, "split", "probe") else []
    figures: dict[str, Callable[[], Figure]] = {
        "entropy": entropy_figure,
        "gradient": gradient_figure,
        "split": lambda: split_figure(run),
        "kernel": kernel_figure,
        "u_statistic": u_statistic_figure,
        "two_batch": two_batch_figure,
        "snis": snis_figure,
        "second_order": second_order_figure,
        "probe": lambda: probe_figure(run),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in figures.items():
        if args.only in (None, name):
            with paper():
                png, svg = save(draw(), args.out / f"rl_{name}")
            svg.unlink()  # the page shows the PNG
            print(png)


if __name__ == "__main__":
    main()
