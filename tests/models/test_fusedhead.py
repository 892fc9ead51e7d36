"""The kernel of head and statistics against `token_stats` of the full logits, and the path that uses it.

    TRITON_INTERPRET=1 python -m pytest tests/models/test_fusedhead.py        # without a GPU: in Triton's interpreter

What needs no kernel runs everywhere.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from devices import GPU, Gpu, to_gpu
from fakes import make_model
from torch import Tensor

from fluxentropy.entropy import TokenStats, token_stats
from fluxentropy.models import forward, fusedhead, paths
from fluxentropy.models.forward import FastPath, TailHead, can_fuse
from fluxentropy.models.fusedhead import TILES, FusedHeadPath, Tail, Tiles, fused_stats, measured_tail
from tests.models.test_forward import decoder_of, padded_batch
from tests.test_entropy import CASES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs triton, and a GPU or TRITON_INTERPRET=1",
)


def fused(hidden: Tensor, weight: Tensor, targets: Tensor | None = None, **options: Any) -> TokenStats:
    bias = options.pop("bias", None)
    moved = (None if x is None else x.to(DEVICE) for x in (hidden, weight, targets, bias))
    hidden, weight, targets, bias = moved
    stats = fused_stats(hidden, weight, targets, bias=bias, **options)
    return TokenStats(*(None if x is None else x.cpu() for x in stats))


def as_product(z: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and a weight whose product is exactly z, -inf as a logit of no probability."""
    return torch.eye(len(z)), z.T.clamp(min=-3e38).contiguous()


def assert_same(got: TokenStats, logits: Tensor, targets: Tensor | None = None, temperature: float = 1.0) -> None:
    """`got` is what float64 logits give, as closely as the estimators' own tests ask."""
    want = token_stats(logits.double(), targets, temperature=temperature)
    assert got.entropy.dtype == torch.float32
    torch.testing.assert_close(got.entropy.double(), want.entropy, rtol=1e-5, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(got.varentropy.double(), want.varentropy, rtol=1e-4, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(got.max_prob.double(), want.max_prob, rtol=1e-5, atol=0, equal_nan=True)
    if targets is not None:
        torch.testing.assert_close(got.surprisal.double(), want.surprisal, rtol=1e-6, atol=2e-6, equal_nan=True)


@runs_kernels
@pytest.mark.parametrize("case", CASES)
def test_the_hard_cases_of_the_estimators(case: str) -> None:
    z = CASES[case](torch.Generator().manual_seed(1))
    targets = torch.randint(0, z.shape[1], (len(z),), generator=torch.Generator().manual_seed(2))
    targets[0] = -1
    tiles = Tiles(rows=32, columns=128 if z.shape[1] <= 5000 else 4096, unit=32)
    hidden, weight = as_product(z)
    assert_same(fused(hidden, weight, targets, tiles=tiles), z.clamp(min=-3e38), targets)


@runs_kernels
@pytest.mark.parametrize("programs", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 1, 1), (1, 40, 300), (70, 65, 257), (130, 33, 128)])
def test_sizes_that_fill_no_tile_in_every_type(
    dtype: torch.dtype, rows: int, width: int, vocabulary: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusedhead, "PROGRAMS", programs)  # how many parts the vocabulary has must not matter
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(rows, width, generator=g).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=g) * 0.5).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    logits = hidden.double() @ weight.double().T  # the products of half-precision numbers are not rounded
    got = fused(hidden, weight, targets)
    for name in ("entropy", "varentropy", "max_prob", "surprisal"):
        want = getattr(token_stats(logits, targets), name)
        torch.testing.assert_close(getattr(got, name).double(), want, rtol=2e-5, atol=2e-5, msg=name)


@runs_kernels
def test_bias_scale_cap_and_temperature_in_the_order_of_models() -> None:
    g = torch.Generator().manual_seed(4)
    hidden, weight, bias = (torch.randn(*shape, generator=g) for shape in ((20, 48), (300, 48), (300,)))
    targets = torch.randint(0, 300, (20,), generator=g)
    x = hidden.double() @ weight.double().T + bias.double()
    for scale, cap, temperature in ((1.0, None, 0.5), (0.0625, None, 1.0), (1.0, 0.5, 1.0), (3.0, 30.0, 2.0)):
        logits = Tail(scale=scale, cap=cap)(x)
        got = fused(hidden, weight, targets, bias=bias, scale=scale, cap=cap, temperature=temperature)
        want = token_stats(logits, targets, temperature=temperature)
        for a, b in zip(got[:4], want[:4], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize("columns", [16, 64])
def test_logits_of_minus_infinity_have_no_mass(columns: int) -> None:
    g = torch.Generator().manual_seed(5)
    hidden, weight, bias = torch.randn(9, 16, generator=g), torch.randn(100, 16, generator=g), torch.zeros(100)
    bias[:40] = bias[70] = -torch.inf  # whole tiles without a finite logit, the first ones too
    targets = torch.full((9,), 70)
    tiles = Tiles(rows=16, columns=columns, unit=16)
    got = fused(hidden, weight, targets, bias=bias, tiles=tiles)
    assert_same(got, hidden.double() @ weight.double().T + bias.double())
    assert (got.surprisal == torch.inf).all()
    bias[:] = -torch.inf
    bias[7] = 1e4
    one_hot = fused(hidden * 0, weight, bias=bias, tiles=tiles)
    assert (one_hot.entropy.abs().max(), one_hot.varentropy.max(), one_hot.max_prob.min()) == (0, 0, 1)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, in the interpreter
@runs_kernels
def test_undefined_rows_are_nan_and_leave_the_others_alone() -> None:
    hidden = torch.ones(70, 16)
    weight = torch.randn(100, 16, generator=torch.Generator().manual_seed(6))
    hidden[1] = torch.nan
    hidden[2, 3], weight[5, 3] = -1.0, -torch.inf  # +inf for row 2, -inf for the others: no mass
    weight[50, 3] = -torch.inf
    hidden[66, 0] = torch.inf
    targets = torch.arange(70)
    targets[4], targets[5] = -1, -100
    logits = hidden.double() @ weight.double().T
    assert logits[0, 5] == -torch.inf and logits[2, 5] == torch.inf
    got = fused(hidden, weight, targets)
    assert got.entropy.isnan().nonzero()[:, 0].tolist() == [1, 2, 66]
    assert got.surprisal.isnan().nonzero()[:, 0].tolist() == [1, 2, 4, 5, 66]
    assert_same(got, logits)
    torch.testing.assert_close(
        got.surprisal.double(), token_stats(logits, targets).surprisal, rtol=1e-6, atol=1e-6, equal_nan=True
    )
    nothing = fused(hidden[:3], weight, bias=torch.full((100,), -torch.inf))
    assert nothing.entropy.isnan().all()


@runs_kernels
def test_equal_maxima_in_several_tiles_and_parts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for programs in (1, 4):
        monkeypatch.setattr(fusedhead, "PROGRAMS", programs)
        z = torch.full((3, 200), -30.0)
        z[:, [0, 5, 40, 41, 199]] = 2.0
        z[1, 150] = 40.0  # a later tile's maximum makes all earlier ones small
        assert_same(fused(*as_product(z), tiles=Tiles(rows=16, columns=32, unit=16)), z)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or INTERPRETED, reason="needs triton, and no TRITON_INTERPRET"
)
@pytest.mark.parametrize("capability", [80, 90])  # of A100 and H100; no GPU is needed to compile for one
@pytest.mark.parametrize("dtype", TILES)
def test_the_kernel_compiles_for_gpus(dtype: torch.dtype, capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    size, kernel = TILES[dtype], fusedhead._kernel
    of = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
    flags = {"HAS_BIAS": True, "HAS_TARGETS": True, "HAS_CAP": True, "WIDEN": False, "FLOOR": fusedhead.FLOOR}
    flags |= {"ROWS": size.rows, "COLUMNS": size.columns, "UNIT": size.unit}
    types = [of, of, of, "*i64", "*fp32", *["i32"] * 4, *["fp32"] * 3, *["constexpr"] * len(flags)]
    source = ASTSource(
        kernel,
        dict(zip(kernel.arg_names, types, strict=True)),
        {(kernel.arg_names.index(name),): value for name, value in flags.items()},
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in ("hidden", "weight", "out", "width")},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": size.warps})
    assert built.metadata.shared <= 99 * 1024  # bytes that a block may have on every GPU since the A10
    assert ("mma" in built.asm["ptx"]) == (dtype != torch.float32)  # tensor cores, and no TF32


@runs_kernels
def test_no_rows() -> None:
    assert fused(torch.empty(0, 16), torch.randn(50, 16), torch.empty(0, dtype=torch.long)).entropy.shape == (0,)


@runs_kernels
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_path_gives_what_the_fast_path_gives(kind: str) -> None:
    model = make_model(kind).to(DEVICE)
    batch = [tensor.to(DEVICE) for tensor in padded_batch()]
    path, plain = FusedHeadPath(model), FastPath(model)
    with torch.inference_mode():
        for got, want in zip(path(*batch)[:4], plain(*batch)[:4], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        for got, want in zip(path(*batch, top_k=3), plain(*batch, top_k=3), strict=True):
            torch.testing.assert_close(got, want)


@runs_kernels
def test_the_scorer_takes_it_after_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "can_fuse", lambda *_: True)
    path, note = paths.choose_path(decoder_of(make_model("gemma3")))
    assert isinstance(path, FusedHeadPath)
    assert "path fast, fused head: deviation" in note


# --- without a kernel -------------------------------------------------------------------------------------------------


class Emulated:
    """What the kernel promises, part by part, in PyTorch."""

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        return self.run

    def run(self, hidden: Any, weight: Any, bias: Any, targets: Any, out: Any, *numbers: Any, **flags: Any) -> None:
        tiles, scale, cap, capped_scale = numbers[3:]
        x = hidden.float() @ weight.float().T + (bias if flags["HAS_BIAS"] else 0)
        z = cap * torch.tanh(x * capped_scale) if flags["HAS_CAP"] else x * scale
        for part, piece in enumerate(z.split(tiles * flags["COLUMNS"], dim=1)):
            first = part * tiles * flags["COLUMNS"]
            wrong = piece.isnan() | (piece == torch.inf)
            piece = piece.masked_fill(wrong, -torch.inf)
            top = piece.amax(1)
            d = (piece - top.masked_fill(top == -torch.inf, 0)[:, None]).clamp(min=-110)
            e = d.exp().masked_fill(d == 0, 0)
            chosen = torch.zeros_like(top)
            if flags["HAS_TARGETS"]:
                hit = torch.arange(first, first + piece.shape[1], device=z.device) == targets[:, None]
                chosen = torch.where(hit, piece, 0).sum(1)
            found = (top, (d == 0).sum(1), e.sum(1), (e * d).sum(1), (e * d * d).sum(1), chosen, wrong.any(1))
            out[:, part] = torch.stack([column.float() for column in found])


@pytest.mark.parametrize("programs", [1, 7])
@pytest.mark.parametrize("case", CASES)
def test_the_sums_of_parts_make_those_of_the_vocabulary(
    case: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusedhead, "_kernel", Emulated())
    monkeypatch.setattr(fusedhead, "PROGRAMS", programs)
    z = CASES[case](torch.Generator().manual_seed(1))
    z[1, :2] = torch.tensor([torch.nan, 0.0])[: z.shape[1]]
    targets = torch.randint(0, z.shape[1], (len(z),), generator=torch.Generator().manual_seed(2))
    targets[0] = -1
    hidden, weight = as_product(z.nan_to_num(nan=0.0, neginf=-3e38))
    hidden[1, 0] = torch.nan
    z = z.clamp(min=-3e38)
    z[1] = torch.nan
    assert_same(fused_stats(hidden, weight, targets), z, targets)


def test_on_a_gpu_nothing_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedhead, "_kernel", Emulated())
    ids, keep, targets = padded_batch()
    with torch.no_grad():
        expected = FastPath(make_model("gemma3"))(ids, keep, targets)
    with Gpu() as gpu, torch.no_grad():
        path = FusedHeadPath(to_gpu(make_model("gemma3")))
        gpu.waits.clear()
        found = path(ids.to(GPU), keep, targets.to(GPU))
        assert {file for _, file in gpu.waits} <= {"masking_utils.py"}
        for got, want in zip(found[:4], expected[:4], strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-5)


def wrong_stats(hidden: Tensor, weight: Tensor, targets: Tensor | None, **_: Any) -> TokenStats:
    return token_stats(hidden @ weight.T * 0.9, targets)


@pytest.mark.parametrize("failure", ["wrong", "raises"])
def test_a_kernel_that_fails_the_probe_is_not_taken_and_said(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> TokenStats:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(fusedhead, "fused_stats", wrong_stats if failure == "wrong" else broken)
    monkeypatch.setattr(paths, "can_fuse", lambda *_: True)
    path, note = paths.choose_path(decoder_of(make_model()))
    assert type(path) is FastPath
    assert "path fast: deviation" in note
    said = "deviates by" if failure == "wrong" else "RuntimeError: no such instruction"
    assert "; not fast, fused head: this model" in note and said in note


def changed(model: Any, change: Any) -> Any:
    """The model, whose forward ends with what `change` makes of its logits."""
    forward = type(model).forward

    class Changed(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **options: Any) -> Any:
            out = forward(self, *args, **options)
            out.logits = change(out.logits)
            return out

    model.__class__ = Changed
    return model


def test_a_models_tail_is_measured() -> None:
    assert measured_tail(TailHead(make_model())) == Tail()
    assert measured_tail(TailHead(make_model("gpt2"))) == Tail()
    capped = measured_tail(TailHead(make_model("gemma3", final_logit_softcapping=30.0)))
    assert (capped.scale, capped.cap) == (pytest.approx(1, rel=1e-9), pytest.approx(30, rel=1e-9))
    assert measured_tail(TailHead(changed(make_model(), lambda z: z / 8))).scale == pytest.approx(0.125)
    both = measured_tail(TailHead(changed(make_model(), lambda z: 20 * torch.tanh(z * 0.3 / 20))))
    assert (both.scale, both.cap) == (pytest.approx(0.3), pytest.approx(20))


@pytest.mark.parametrize(
    "change",
    [lambda z: z + 1, lambda z: z.abs(), lambda z: z * torch.linspace(1, 2, z.shape[-1]), lambda z: z[..., 1:],
     lambda z: z.clamp(-20, 20), lambda z: z.roll(1, -1), lambda z: z - z.logsumexp(-1, keepdim=True)],
)  # fmt: skip
def test_a_tail_that_the_kernel_does_not_know_is_refused(change: Any) -> None:
    with pytest.raises(ValueError, match="more after its output projection than a scale and a soft-cap"):
        measured_tail(TailHead(changed(make_model(), change)))


def test_a_tail_that_changes_the_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    head = TailHead(make_model())
    given = forward._GivenHidden
    monkeypatch.setattr(forward, "_GivenHidden", lambda hidden: given(hidden * 2))
    with pytest.raises(ValueError, match="more after its output projection"):
        measured_tail(head)


def test_where_there_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_fuse(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton" or None)
    gpu = torch.device("cuda:1")
    assert can_fuse(gpu, torch.bfloat16) and can_fuse(gpu, torch.float32)
    assert not can_fuse(gpu, torch.float64) and not can_fuse(torch.device("mps"), torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not can_fuse(gpu, torch.bfloat16)
