"""The oracle of the reinforcement-learning estimators: every response of a small policy, in float64, by plain autograd.

Nothing here uses the package's estimators: log-probabilities come from log_softmax, the entropy is -Σ π ln π over
whole responses, gradients and Hessians are torch's own reverse mode.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fluxentropy.rl.probe.samples import Responses, Sampler, responses

EOS = 0
Outcomes = list[tuple[int, ...]]


class TinyPolicy(nn.Module):
    """A recurrent policy of some dozen float64 parameters: ids (n, W) -> logits (n, W, V)."""

    def __init__(self, vocabulary: int = 3, width: int = 2, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=rng, dtype=torch.float64))

        self.embedding, self.carry = random(max(vocabulary, 3), width), random(width, width)
        self.head, self.bias = random(width, vocabulary), random(vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        state = torch.zeros(len(ids), self.carry.shape[0], dtype=torch.float64)
        states = []
        for column in ids.T:
            state = torch.tanh(state @ self.carry + self.embedding[column])
            states.append(state)
        return torch.stack(states, 1) @ self.head + self.bias


def outcomes(vocabulary: int, limit: int) -> Outcomes:
    """Every response of at most `limit` tokens that ends at its first EOS or at the limit."""
    found = []
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            if EOS in tokens[:-1] or (tokens[-1] != EOS and length < limit):
                continue
            found.append(tokens)
    return found


@dataclass(frozen=True, kw_only=True)
class World:
    """A policy, equally likely prompts, and all responses to each. R responses, N prompts."""

    policy: nn.Module
    prompts: list[list[int]]
    every: Outcomes
    temperature: float = 1.0

    @property
    def batch(self) -> Responses:
        """All responses as one batch of N prompts with R responses each."""
        return self.batch_of([list(range(len(self.every)))] * len(self.prompts), range(len(self.prompts)))

    def sample(self, B: int, G: int, rng: torch.Generator, **options) -> Responses:
        """B prompts drawn with return, and G responses to each drawn from the policy."""
        prompts = torch.randint(0, len(self.prompts), (B,), generator=rng)
        with torch.no_grad():
            p = self.logp().exp()
        chosen = torch.multinomial(p[prompts], G, replacement=True, generator=rng)
        return self.batch_of(chosen.tolist(), prompts.tolist(), **options)

    def batch_of(self, chosen: list[list[int]], prompts, **options) -> Responses:
        """Responses `chosen[b]` (numbers of outcomes) to `prompts[b]`."""
        options.setdefault("sampler", Sampler(temperature=self.temperature))
        limit = max(map(len, self.every))
        tokens = torch.full((len(chosen), len(chosen[0]), limit), EOS)
        for b, row in enumerate(chosen):
            for g, number in enumerate(row):
                tokens[b, g, : len(self.every[number])] = torch.tensor(self.every[number])
        return responses([self.prompts[n] for n in prompts], tokens, eos=EOS, **options)

    def logp(self) -> Tensor:
        """S of every response, differentiable, (N, R)."""
        limit = max(map(len, self.every))
        ends = torch.tensor([[*tokens] + [EOS] * (limit - len(tokens)) for tokens in self.every])
        counts = torch.arange(limit) < torch.tensor([[len(tokens)] for tokens in self.every])
        rows = []
        for prompt in self.prompts:
            output = self.policy(torch.cat([torch.tensor([prompt] * len(ends)), ends], 1))
            logits = getattr(output, "logits", output)[:, len(prompt) - 1 : -1].double()
            logp = (logits / self.temperature).log_softmax(-1).gather(2, ends[..., None])[..., 0]
            rows.append((logp * counts).sum(1))
        return torch.stack(rows)

    def entropy(self) -> Tensor:
        """𝓗 = mean over prompts of -Σ π ln π over whole responses, differentiable."""
        S = self.logp()
        return -(S.exp() * S).sum(1).mean()

    def lengths(self) -> Tensor:
        return torch.tensor([len(tokens) for tokens in self.every], dtype=torch.float64)

    def per_token(self) -> Tensor:
        """h = 𝓗 / E[T], differentiable."""
        return self.entropy() / (self.logp().exp() * self.lengths()).sum(1).mean()

    def gradient(self, value: Tensor) -> Tensor:
        """∇ of a differentiable number, flat (P,)."""
        found = torch.autograd.grad(value, list(self.policy.parameters()), retain_graph=True)
        return torch.cat([g.reshape(-1) for g in found])

    def logp_gradients(self) -> Tensor:
        """∇S of every response, (N, R, P)."""
        S = self.logp()
        return torch.stack([self.gradient(s) for s in S.reshape(-1)]).view(*S.shape, -1)

    def moved(self, direction: Tensor, eta: float) -> World:
        """The world with parameters θ + η v."""
        copy = TinyPolicy(*self.policy.head.shape[::-1])
        theta = torch.cat([p.detach().reshape(-1) for p in self.policy.parameters()])
        nn.utils.vector_to_parameters(theta + eta * direction, copy.parameters())
        return World(policy=copy, prompts=self.prompts, every=self.every, temperature=self.temperature)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector (P,) as tensors by parameter name."""
        sizes = [p.numel() for p in self.policy.parameters()]
        pieces = flat.split(sizes)
        return {n: x.view_as(p) for (n, p), x in zip(self.policy.named_parameters(), pieces, strict=True)}


def world(
    seed: int = 0, vocabulary: int = 3, limit: int = 2, prompts: int = 2, scale: float = 1.0, temperature: float = 1.0
) -> World:
    """Prompts of different lengths, so that responses begin at different places."""
    policy = TinyPolicy(vocabulary, seed=seed, scale=scale)
    texts = [[1], [2, 1], [1, 1, 2], [2]][:prompts]
    return World(policy=policy, prompts=texts, every=outcomes(vocabulary, limit), temperature=temperature)


def direction(world: World, seed: int = 1, size: float = 1.0) -> Tensor:
    """A random direction (P,) of length `size`."""
    P = sum(p.numel() for p in world.policy.parameters())
    v = torch.randn(P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return size * v / v.norm()


def tuples(count: int, size: int) -> Tensor:
    """All `size`-tuples of numbers below `count`, (count**size, size)."""
    return torch.cartesian_prod(*[torch.arange(count)] * size).view(-1, size)
