"""Which way a decoder's tokens go: the fastest one that gives the numbers of the model's own plain forward.

On a CPU, the fused decoder (fused.py); else transformers' layers, prepacked; else as they are, rows apart where they
disturb each other; else the full logits of one row at a time. Each is tried on probe rows before anything is scored.

What was found for a model whose files are unchanged is kept in the cache folder, so that the next command need not load
the model twice to know it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxentropy.errors import ModelError, RunError, UsageError
from fluxentropy.models.files import FileRows, Weights, cache_folder, file_weights
from fluxentropy.models.forward import (
    ALONE,
    PROBE_TOLERANCE,
    FastPath,
    ForwardPath,
    FreshState,
    Grouped,
    PlainPath,
    can_fuse,
    distance,
    entropies,
    is_causal,
    path_error,
    probe_logits,
    probe_rows,
    row_limit,
)
from fluxentropy.models.fused import FusedDecoder, FusedPath, Shape, shape_of
from fluxentropy.models.linear import can_pack, can_quantise
from fluxentropy.models.loading import Decoder, find_decoder
from fluxentropy.models.weights import is_out_of_memory
from fluxentropy.models.zoo import ZooEntry
from fluxentropy.runs.files import fingerprint_json, read_json, versions, write_json

EXACT = (torch.float32, torch.float64)
FORMAT = 1  # of what is kept about a model; another one where fused.py may give other numbers


def open_path(
    entry: ZooEntry, *, device: str = "auto", dtype: str = "auto", offline: bool = False
) -> tuple[Decoder, ForwardPath, tuple[str, ...]]:
    """Find a model and choose the path through it; also notes on what was chosen. Its weights are loaded once.

    Errors: those of `load_decoder` and `choose_path`; UsageError for int8 where a model or a device cannot have it.
    """
    decoder = find_decoder(entry, device=device, dtype=dtype, offline=offline)
    if found := _fused(decoder):
        return decoder, found[0], (*decoder.notes, found[1])
    if decoder.dtype == torch.int8:
        raise UsageError(_no_int8(decoder))
    path: ForwardPath | None = None
    if can_pack(decoder.device, decoder.dtype):
        path, note = choose_path(decoder, pack=True)
        if path is None:
            decoder = find_decoder(entry, device=device, dtype=dtype, offline=offline)
    if path is None:
        path, note = choose_path(decoder)
    assert path is not None  # without packing there is always the plain path
    return decoder, path, (*decoder.notes, note)


# --- the fused decoder ------------------------------------------------------------------------------------------------


def _fused(decoder: Decoder) -> tuple[ForwardPath, str] | None:
    """The fused path and a note, where this decoder has it and it agrees with the plain forward; else None."""
    whole = decoder.dtype == torch.int8
    ready = decoder.device.type == "cpu" and can_quantise() if whole else can_pack(decoder.device, decoder.dtype)
    weights = file_weights(decoder.folder) if ready and decoder.folder else None
    if weights is None:
        return None
    kept = _kept_file(decoder)
    if known := _known(kept):
        if not known["shape"]:
            return None
        decoder.notes.extend(known["notes"])
        decoder.__dict__["window"] = known["window"]
        facts = {**known["shape"], "inverse": torch.tensor(known["shape"]["inverse"])}
        seen = {name: torch.tensor(values) for name, values in known["largest"].items()}
        return FusedPath(_build(decoder, Shape(**facts), weights, seen)), known["note"]
    if (shape := shape_of(decoder.config)) is None:
        return None
    before = len(decoder.notes)
    model = decoder.model
    reference, remembers = own_numbers(decoder, FreshState(model))
    if remembers:
        return None
    rows = probe_rows(model)
    decoder.__dict__.pop("model")  # its weights are read again from the files: once in memory is enough
    del model
    largest: dict[str, Tensor] = {}
    try:
        if whole:
            largest = FusedDecoder(shape, weights).largest(random_rows(len(weights("model.embed_tokens.weight"))))
        path = FusedPath(_build(decoder, shape, weights, largest))
        error = path_error(path, rows, reference, exact=decoder.dtype in EXACT)
    except (KeyError, RuntimeError) as problem:  # other weights than those of the family
        if is_out_of_memory(problem):
            raise
        return None
    agrees = error <= PROBE_TOLERANCE[decoder.dtype]
    note = f"path {path.name}: deviation from the plain forward {error:.1g} nats on probe rows"
    found = {
        "shape": {**vars(shape), "inverse": shape.inverse.tolist()} if agrees else None,
        "largest": {name: values.tolist() for name, values in largest.items()},
        "window": decoder.window,
        "note": note,
        "notes": decoder.notes[before:],
    }
    write_json(kept, found)
    return (path, note) if agrees else None


def _build(decoder: Decoder, shape: Shape, weights: Weights, largest: dict[str, Tensor]) -> FusedDecoder:
    assert decoder.folder is not None  # weights come from its files
    rows = FileRows(decoder.folder, "model.embed_tokens.weight")
    if decoder.dtype == torch.int8:
        return FusedDecoder(shape, weights, largest=largest, rows=rows)
    return FusedDecoder(shape, weights, decoder.dtype, rows=rows)


def random_rows(vocabulary: int) -> list[Tensor]:
    """Texts (128,) of random tokens, that say how large each feature gets: as well as real ones do (docs/LOG.md)."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, vocabulary, (12, 128), generator=generator))


def _known(kept: Path) -> dict[str, Any] | None:
    """What was found before; nothing where the file is damaged."""
    try:
        return read_json(kept)
    except RunError:
        return None


def _kept_file(decoder: Decoder) -> Path:
    """The file that says what was found about a decoder."""
    facts = {
        "format": FORMAT,
        "model": decoder.fingerprint,
        "dtype": str(decoder.dtype),
        "versions": versions(),
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
    }
    return cache_folder() / "paths" / f"{fingerprint_json(facts)[:32]}.json"


def _no_int8(decoder: Decoder) -> str:
    kind = getattr(decoder.config, "model_type", "") or type(decoder.config).__name__
    if decoder.device.type != "cpu":
        return f"--dtype int8 is for CPUs, and {decoder.name} is on {decoder.device}: use bf16"
    if not can_quantise():
        return (
            "--dtype int8: this processor has no VNNI, and without it the sums of 8-bit products overflow (or this "
            "build of torch has no such products): use fp32"
        )
    return (
        f"--dtype int8: {decoder.name} ({kind}) has other layers than Llama, Mistral and Qwen, or its 8-bit weights "
        f"give too different numbers: use fp32, or bf16"
    )


# --- the layers of transformers ---------------------------------------------------------------------------------------


def choose_path(decoder: Decoder, *, pack: bool = False) -> tuple[ForwardPath | None, str]:
    """The fastest path that agrees with the model's plain forward, and a note; None when `pack` was tried and failed.

    Where padded rows together do not agree, rows of one length are tried, then each row alone, then the plain path.
    The decoder must be as it was loaded: nothing has gone through it. Packing rewrites the model: after a None the
    model must be loaded again.

    Errors: ModelError for a model that is not causal, or that gives a text other numbers when it is asked again.
    """
    model = decoder.model
    fresh = FreshState(model)
    reference, remembers = own_numbers(decoder, fresh)
    rows, exact = probe_rows(model), decoder.dtype in EXACT
    hint = row_limit(model)
    state = fresh if remembers or hint is not None else None  # else there is nothing to give back
    limits: list[int | None] = [hint, *(limit for limit in (0, ALONE) if hint is None or limit < hint)]
    tolerance = PROBE_TOLERANCE[decoder.dtype]
    failed: list[str] = []
    for kind, options in _fast_paths(decoder, pack):
        reason = ""
        try:
            fast = kind(model, **options)
            for limit in limits[1:] if remembers and hint is None else limits:
                path = fast if limit is None else Grouped(fast, limit, state)
                error = path_error(path, rows, reference, exact=exact)
                if error <= tolerance:
                    note = f"path {path.name}: deviation from the plain forward {error:.1g} nats on probe rows"
                    return path, "; not ".join([note, *failed])
                reason = reason or f"deviates by {error:.2g} nats from the plain forward"
        except Exception as problem:  # models of any make: whatever goes wrong in a fast path, the plain one stays
            reason = f"cannot run the fast path ({type(problem).__name__}: {problem})".splitlines()[0]
        failed.append(f"{kind.name}: this model {reason}")
    if pack:
        return None, ""
    plain = PlainPath(model)  # one row at a time
    return Grouped(plain, ALONE, state) if state else plain, f"path plain, slow: this model {reason}"


def _fast_paths(decoder: Decoder, pack: bool) -> list[tuple[type[FastPath], dict[str, Any]]]:
    """The fast paths that this device may have, and what they are made with: the fastest first."""
    paths: list[tuple[type[FastPath], dict[str, Any]]] = [(FastPath, {"packed": pack})]
    if can_fuse(decoder.device, decoder.dtype):
        from fluxentropy.models.fusedhead import FusedHeadPath  # loads Triton

        paths.insert(0, (FusedHeadPath, {}))
    return paths


def own_numbers(decoder: Decoder, state: FreshState) -> tuple[Tensor, bool]:
    """Entropies of the probe rows, each alone from the fresh state; and whether the model remembers earlier rows."""
    model = decoder.model
    rows = probe_rows(model)
    try:
        logits = probe_logits(model, rows, before=state.restore)
    except Exception as error:  # models of any make
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"model {decoder.name!r} ({model.config.model_type}) cannot read a text alone: {type(error).__name__}: "
            f"{error}"
        ) from error
    reference = entropies(logits)

    def change(before: Callable[[], None] | None) -> float:
        return distance(entropies(probe_logits(model, rows[:1], before)), reference[: len(rows[0])], exact=True)

    tolerance = PROBE_TOLERANCE[decoder.dtype] / 10
    remembers = change(None) > tolerance
    if remembers and change(state.restore) > tolerance:
        raise ModelError(
            f"model {decoder.name!r} ({model.config.model_type}) gives the same tokens other numbers each time: its "
            f"forward is random, or keeps what it read before; such a model has no score"
        )
    if not is_causal(logits):
        raise ModelError(
            f"model {decoder.name!r} ({model.config.model_type}) is not a causal decoder: "
            f"a later token changes earlier predictions"
        )
    state.restore()
    return reference, remembers
