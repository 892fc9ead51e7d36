"""A decoder as a pure function of its parameters, in a state that every kind of differentiation can pass."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fluxentropy.entropy import check_finite, token_stats
from fluxentropy.errors import ModelError, UsageError
from fluxentropy.rl.probe.samples import Responses, Sampler

# --- the policy -------------------------------------------------------------------------------------------------------


Parameters = dict[str, Tensor]  # name -> tensor: parameters, a step, a direction or a gradient
Forward = Callable[[Any, Tensor, Tensor], Tensor]  # (policy, ids (n, W), mask (n, W)) -> logits (n, W, V)


class Policy:
    """A decoder and the pure function of its trainable parameters.

    Args:
        policy: an `nn.Module` that maps ids (n, W) to logits (n, W, V) or to an output with `.logits`, as every
            `transformers` decoder does; or a plain function, which has no parameters.
        forward: for a decoder that is called otherwise: (policy, ids, mask) -> logits, mask false on the padding.
    """

    def __init__(self, policy: nn.Module | Callable[..., Any], *, forward: Forward | None = None) -> None:
        self._call = _Call(policy, forward or _default_forward(policy))

    @property
    def module(self) -> nn.Module | None:
        """The module, None for a plain function."""
        return self._call.inner if isinstance(self._call.inner, nn.Module) else None

    def parameters(self) -> Parameters:
        """The trainable parameters as they are now, without copies and without gradients."""
        named = () if self.module is None else self.module.named_parameters()
        return {name: tensor.detach() for name, tensor in named if tensor.requires_grad}

    def logits(self, params: Parameters, ids: Tensor, mask: Tensor) -> Tensor:
        """Next-token logits at `params`, (n, W) -> (n, W, V). Errors: `ModelError` for an output without logits."""
        output = functional_call(self._call, {f"inner.{name}": tensor for name, tensor in params.items()}, (ids, mask))
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[1] != ids.shape[1]:
            raise ModelError(
                f"the policy gave {type(output).__name__} for ids of shape {tuple(ids.shape)}: it must give logits "
                "(rows, width, vocabulary) or an output with .logits; otherwise pass forward="
            )
        return logits

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Evaluation mode, and operations that can be differentiated twice in forward mode; all is restored after.

        Fused attention has no such derivative: `scaled_dot_product_attention` takes its mathematical form, and a
        `transformers` model with other kernels switches to eager ones. Layer norms are computed from elementary
        operations, for torch's own has a wrong second derivative. Errors: `ModelError` names another operation that
        has none.
        """
        # With gradients disabled torch takes fused backward formulas (SiLU's) that cannot be differentiated again.
        with (
            evaluating(self.module),
            _eager(self.module, "attn", but="sdpa"),
            _eager(self.module, "experts"),
            sdpa_kernel(SDPBackend.MATH),
            _Differentiable(),
            torch.enable_grad(),
        ):
            try:
                yield
            except RuntimeError as error:
                if "forward AD" in str(error) or "functorch" in str(error):
                    raise ModelError(f"the policy cannot be differentiated in forward mode: {error}") from error
                raise


@contextlib.contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Every submodule in evaluation mode, each put back as it was."""
    training = [] if module is None else [(part, part.training) for part in module.modules()]
    try:
        for part, _ in training:
            part.training = False
        yield
    finally:
        for part, mode in training:
            part.training = mode


@contextlib.contextmanager
def _eager(module: nn.Module | None, what: str, but: str = "eager") -> Iterator[None]:
    """The "attn" or "experts" of a `transformers` model in plain operations, unless they are or its kernel is `but`."""
    kernel = getattr(getattr(module, "config", None), f"_{what}_implementation", None)
    if kernel in (None, "eager", but):
        yield
        return
    switch = getattr(module, f"set_{what}_implementation")
    switch("eager")
    try:
        yield
    finally:
        switch(kernel)


class _Differentiable(TorchFunctionMode):
    """Layer norm by its definition: the fused one is silently wrong when forward mode differentiates it twice.

    Its formula (torch 2.13) takes the saved mean and deviation as constants the second time. And no `requires_grad_`
    within a transform, which refuses it: the hook of `enable_input_require_grads` (gradient checkpointing) calls it.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (nn.functional.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        if function is Tensor.requires_grad_:
            with contextlib.suppress(RuntimeError):
                function(*args, **(kwargs or {}))
            return args[0]
        return function(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001  (torch.layer_norm's last argument)
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    x = input if input.dtype == torch.float64 else input.float()
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    if weight is not None:
        normal = normal * weight
    return (normal if bias is None else normal + bias).to(input.dtype)


class _Call(nn.Module):
    def __init__(self, inner: Any, call: Forward) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        return self.call(self.inner, ids, mask)


def _default_forward(policy: Any) -> Forward:
    takes = inspect.signature(policy.forward if isinstance(policy, nn.Module) else policy).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    return lambda policy, ids, mask: policy(ids, **options)  # noqa: ARG005


# --- vectors of parameters --------------------------------------------------------------------------------------------


def flatten(parameters: Parameters) -> Tensor:
    """All numbers in one float64 vector (P,), in the dictionary's order."""
    return torch.cat([tensor.reshape(-1).double() for tensor in parameters.values()])


def dot(a: Parameters, b: Parameters) -> float:
    """Σ_α a_α b_α over the parameters that both have, in float64."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a if name in b)


# --- passes over responses --------------------------------------------------------------------------------------------
#
# Everything else in this package is arithmetic on what comes from here: `SequenceStats` and its directional derivatives
# by forward-mode differentiation, and gradients of weighted sums by reverse mode. All of it is linear in memory in the
# rows of one pass. The model runs in its own precision; log-softmax and every reduction are in float64.


ROWS = 32  # responses in one pass


class SequenceStats(NamedTuple):
    """Per chosen token, or a derivative of it along a direction; float64 (B, G, L), 0 after the end of a response.

    `logp` S_k = log π(t_k | t_<k, p), nats; `entropy` H_k of the distribution that t_k was drawn from, nats.
    """

    logp: Tensor
    entropy: Tensor


class Weights(NamedTuple):
    """An estimator that is linear in S_k and H_k: X_n = Σ_g Σ_k (logp_gk ∇S_gk + entropy_gk ∇H_gk), for every prompt n.

    float64 (B, G, L), constants; `entropy` None for zeros. The estimate is the mean of X_n over prompts.
    """

    logp: Tensor
    entropy: Tensor | None = None

    def apply(self, stats: SequenceStats) -> Tensor:
        """Σ_g Σ_k of the weighted values: with derivatives along v, the scalars X_n · v. (..., B, G, L) -> (..., B)"""
        total = (self.logp * stats.logp).sum((-1, -2))
        return total if self.entropy is None else total + (self.entropy * stats.entropy).sum((-1, -2))


class _Rows(NamedTuple):
    """Some rows of a batch: ids (n, W), tokens (n, L), the places of their logits (n, L) and the mask (n, L)."""

    ids: Tensor
    present: Tensor  # (n, W), false on padding
    tokens: Tensor
    places: Tensor
    mask: Tensor


def _passes(batch: Responses, rows: int) -> Iterator[_Rows]:
    B, G, W = batch.ids.shape
    ids, tokens, mask = batch.ids.view(B * G, W), batch.tokens.view(B * G, -1), batch.mask.view(B * G, -1)
    starts = batch.prompt_lengths.repeat_interleave(G)
    places = (starts[:, None] - 1 + torch.arange(tokens.shape[1], device=ids.device)).clamp(max=W - 1)
    present = torch.arange(W, device=ids.device) < (starts + batch.lengths.view(-1))[:, None]
    for first in range(0, B * G, rows):
        yield _Rows(*(tensor[first : first + rows] for tensor in (ids, present, tokens, places, mask)))


def _row_logits(policy: Policy, params: Parameters, rows: _Rows) -> Tensor:  # (n, L, V)
    logits = policy.logits(params, rows.ids, rows.present)
    return logits.gather(1, rows.places[..., None].expand(-1, -1, logits.shape[-1])).double()


def _row_stats(policy: Policy, params: Parameters, rows: _Rows, sampler: Sampler) -> tuple[Tensor, Tensor]:  # (n, L)
    z = sampler.restrict(_row_logits(policy, params, rows))
    stats = token_stats(z, rows.tokens, temperature=sampler.temperature)
    assert stats.surprisal is not None
    return torch.where(rows.mask, -stats.surprisal, 0.0), torch.where(rows.mask, stats.entropy, 0.0)


def sequence_stats(
    policy: Policy, batch: Responses, params: Parameters | None = None, *, rows: int = ROWS
) -> SequenceStats:
    """S_k and H_k of every chosen token, at `params` or at the policy's own. -> float64 (B, G, L), nats

    Errors: `ModelError` for logits without a distribution.
    """
    (stats,) = derivatives(policy, batch, {}, order=0, params=params, rows=rows)
    try:
        check_finite(stats)  # type: ignore[arg-type]  # it reads the entropy alone
    except FloatingPointError as error:
        raise ModelError(
            f"{error} (prompt, response, position): the policy's logits are NaN or infinite there"
        ) from None
    return stats


def check_sampled_by(stats: SequenceStats, batch: Responses, max_gap: float) -> None:
    """Raise `UsageError` where the policy, with S_k of `stats` (B, G, L), cannot have sampled the batch as stored.

    That is where a token has probability 0, or where the batch's own log-probabilities differ by more than `max_gap`
    nats on a token: another policy, another temperature, or a rollout engine of other precision. The gap is named.
    """
    if stats.logp.isneginf().any():
        place = tuple(stats.logp.isneginf().nonzero()[0].tolist())
        raise UsageError(f"token {place} (prompt, response, position) has probability 0: another policy sampled it")
    if batch.logp is None:
        return
    gaps = (stats.logp - batch.logp.double()).abs()[batch.mask]
    if not float(gaps.max()) <= max_gap:
        raise UsageError(
            f"stored log-probabilities differ from the policy's by up to {float(gaps.max()):.3g} nats a token (mean "
            f"{float(gaps.mean()):.3g}), more than {max_gap:g}: another policy or temperature than "
            f"{batch.sampler.temperature:g} sampled these responses"
        )


def derivatives(
    policy: Policy,
    batch: Responses,
    direction: Parameters,
    *,
    order: int,
    params: Parameters | None = None,
    rows: int = ROWS,
) -> list[SequenceStats]:
    """[value, d/dη, d²/dη², ...] of S_k and H_k at θ + ηv, η = 0, up to `order` (0, 1 or 2), by nested forward mode.

    `direction` is v by parameter name; a parameter that it leaves out stays. Order 1 costs about as much as five
    forward passes, order 2 as fifteen; no gradient per response is made. Source: RL studies, section on the second
    order.
    """
    theta = policy.parameters() if params is None else params
    if unknown := direction.keys() - theta.keys():
        raise UsageError(f"direction has {min(unknown)}, which is no trainable parameter of the policy")
    parts: list[list[tuple[Tensor, Tensor]]] = []
    with policy.differentiable():
        for chunk in _passes(batch, rows):

            def at(eta: Tensor, chunk: _Rows = chunk) -> tuple[Tensor, Tensor]:
                moved = theta | {name: theta[name] + eta.to(v.dtype) * v for name, v in direction.items()}
                return _row_stats(policy, moved, chunk, batch.sampler)

            parts.append(_taylor(at, order, batch.ids.device))
    shape = (*batch.shape, -1)
    return [
        SequenceStats(*(torch.cat(tensors).detach().view(shape) for tensors in zip(*chunks, strict=True)))
        for chunks in zip(*parts, strict=True)
    ]


def _taylor(f: Callable[[Tensor], Any], order: int, device: torch.device) -> list[Any]:
    """[f(0), f'(0), ...] of a function of one number."""
    zero, one = (torch.tensor(value, dtype=torch.float64, device=device) for value in (0.0, 1.0))
    if order == 0:
        return [f(zero)]
    if order == 1:
        return list(jvp(f, (zero,), (one,)))
    both = jvp(lambda eta: jvp(f, (eta,), (one,)), (zero,), (one,))
    return [*both[0], both[1][1]]


def logit_range(
    policy: Policy, batch: Responses, direction: Parameters, *, params: Parameters | None = None, rows: int = ROWS
) -> Tensor:
    """Δ_a = max_u a_u - min_u a_u over the vocabulary of a = ∇_v z / τ, at every chosen token. -> (B, G, L)

    Tokens of logit -inf are left out; 0 after the end of a response.
    """
    theta = policy.parameters() if params is None else params
    parts = []
    with policy.differentiable():
        for chunk in _passes(batch, rows):

            def at(eta: Tensor, chunk: _Rows = chunk) -> Tensor:
                moved = theta | {name: theta[name] + eta.to(v.dtype) * v for name, v in direction.items()}
                return _row_logits(policy, moved, chunk)

            z, a = _taylor(at, 1, batch.ids.device)
            absent = z == -torch.inf
            spread = a.masked_fill(absent, -torch.inf).amax(-1) - a.masked_fill(absent, torch.inf).amin(-1)
            parts.append(torch.where(chunk.mask, spread, 0.0))
    return torch.cat(parts).view(*batch.shape, -1) / batch.sampler.temperature


# --- gradients --------------------------------------------------------------------------------------------------------


def weighted_gradient(
    policy: Policy, batch: Responses, weights: Weights, params: Parameters | None = None, *, rows: int = ROWS
) -> Parameters:
    """(1/B) Σ_n X_n by reverse mode, one backward pass for every `rows` responses. -> shapes of the parameters"""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in (params or policy.parameters()).items()}
    B, G = batch.shape
    logp_weights, entropy_weights = _row_weights(weights, B * G)
    with policy.differentiable():
        for number, chunk in enumerate(_passes(batch, rows)):
            here = slice(number * rows, (number + 1) * rows)
            logp, entropy = _row_stats(policy, theta, chunk, batch.sampler)
            total = (logp_weights[here] * logp).sum() + (entropy_weights[here] * entropy).sum()
            (total / B).backward()
    return {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in theta.items()}


def prompt_gradients(
    policy: Policy, batch: Responses, weights: Weights, params: Parameters | None = None, *, rows: int = ROWS
) -> Iterator[Parameters]:
    """X_n of one prompt after the other, each by its own backward passes."""
    for n in range(batch.shape[0]):
        one = batch.select(slice(n, n + 1))
        logp, entropy = (w if w is None else w[n : n + 1, :, : one.longest] for w in weights)
        assert logp is not None
        yield weighted_gradient(policy, one, Weights(logp, entropy), params, rows=rows)


def row_gradients(
    policy: Policy, batch: Responses, weights: Weights, params: Parameters | None = None, *, rows: int = ROWS
) -> Tensor:
    """Σ_k (logp_k ∇S_k + entropy_k ∇H_k) of every response, by vmap. -> (B, G, P), P parameters in their own order

    For small models: memory is B·G·P numbers.
    """
    theta = policy.parameters() if params is None else params
    B, G = batch.shape
    logp_weights, entropy_weights = _row_weights(weights, B * G)

    def value(theta: Parameters, row: _Rows, logp_weight: Tensor, entropy_weight: Tensor) -> Tensor:
        logp, entropy = _row_stats(policy, theta, _Rows(*(tensor[None] for tensor in row)), batch.sampler)
        return (logp_weight * logp[0]).sum() + (entropy_weight * entropy[0]).sum()

    each = vmap(grad(value), (None, 0, 0, 0))
    parts = []
    with policy.differentiable():
        for number, chunk in enumerate(_passes(batch, rows)):
            here = slice(number * rows, (number + 1) * rows)
            gradients = each(theta, chunk, logp_weights[here], entropy_weights[here])
            parts.append(torch.cat([gradients[name].flatten(1) for name in theta], 1))
    return torch.cat(parts).view(B, G, -1)


def _row_weights(weights: Weights, n: int) -> tuple[Tensor, Tensor]:  # (N, L) each
    entropy = torch.zeros_like(weights.logp) if weights.entropy is None else weights.entropy
    return weights.logp.reshape(n, -1), entropy.expand_as(weights.logp).reshape(n, -1)
