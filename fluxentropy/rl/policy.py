"""A decoder as a pure function of its parameters, in a state that every kind of differentiation can pass."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fluxentropy.errors import ModelError

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
