"""A decoder as a pure function of its parameters, in a state that every kind of differentiation can pass."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

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
        """Evaluation mode and attention that forward-mode differentiation can pass; everything is restored after.

        Fused attention has no forward-mode derivative. The mathematical one of `scaled_dot_product_attention` is used
        instead, and `transformers` models with another kernel than that switch to eager attention.
        """
        modules = [] if self.module is None else list(self.module.modules())
        training = [module.training for module in modules]
        kernel = getattr(getattr(self.module, "config", None), "_attn_implementation", None)
        other = kernel not in (None, "eager", "sdpa")
        set_kernel: Callable[[str], None] = getattr(self.module, "set_attn_implementation", lambda _: None)
        try:
            for module in modules:
                module.training = False
            if other:
                set_kernel("eager")
            # With gradients disabled torch takes fused backward formulas (SiLU's) that cannot be differentiated again.
            with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
                yield
        finally:
            if other:
                set_kernel(str(kernel))
            for module, mode in zip(modules, training, strict=True):
                module.training = mode


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
