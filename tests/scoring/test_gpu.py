"""The scorer on a stand-in for a GPU: every tensor in its place, the CPU's numbers, and no waiting on the way."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import GPU, Gpu, OnGpu, to_gpu
from fakes import SENTENCES, make_model, make_tokenizer

from fluxentropy.evaluation.answering import Reader
from fluxentropy.models.forward import FastPath, Grouped, PlainPath
from fluxentropy.models.loading import Decoder
from fluxentropy.models.paths import choose_path
from fluxentropy.scoring.scorer import Scorer
from tests.models.test_forward import MODELS, decoder_of
from tests.models.test_forward import TEXTS as BATCH
from tests.scoring.test_scorer import assert_equal

TEXTS = [*SENTENCES, " ".join(SENTENCES), SENTENCES[1], "e", ""]


def decoder_on(device: torch.device, kind: str = "llama", **changes: Any) -> Decoder:
    model = make_model(kind, **changes)
    decoder = Decoder.of(
        model if device.type == "cpu" else to_gpu(model), make_tokenizer(), name="tiny", fingerprint="none"
    )
    return dataclasses.replace(decoder, device=device)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Inference mode takes no tensors of other types: here it only means that no gradients are wanted."""
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    monkeypatch.setattr(Reader, "_read", torch.no_grad()(Reader._read.__wrapped__))
    with Gpu() as mode:
        yield mode


def ours(gpu: Gpu) -> list[str]:
    """What waits for the GPU in a batch, but for the look that transformers takes at the positions: packed texts?

    It comes before the first layer, when there is nothing to wait for yet.
    """
    return [name for name, file in gpu.waits if file != "masking_utils.py"]


def test_the_stand_in_notices_what_a_gpu_would_refuse_or_wait_for(gpu: Gpu) -> None:
    here, there = torch.ones(3), torch.ones(3).to(GPU)
    assert isinstance(there, OnGpu)
    with pytest.raises(AssertionError, match="on the GPU and on the CPU"):
        here + there
    assert (there + torch.tensor(1.0)).cpu().tolist() == [2.0] * 3
    assert there[torch.tensor([True, False, True])].shape == (2,)
    assert [name for name, _ in gpu.waits] == ["_to_copy"]
    assert there.sum().item() == 3.0
    assert gpu.waits[1:] == [("_local_scalar_dense", "test_gpu.py")]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_scores_are_those_of_the_cpu(kind: str, gpu: Gpu) -> None:
    decoder = decoder_on(GPU, kind)
    path, note = choose_path(decoder)
    assert type(path) is FastPath, note
    scorer = Scorer(decoder, path=path, max_tokens=40)
    gpu.waits.clear()
    got = scorer.score(TEXTS)
    assert ours(gpu) == ["_to_copy"] * 4  # one batch: its four statistics, and nothing before them
    expected = Scorer(decoder_on(torch.device("cpu"), kind), max_tokens=40).score(TEXTS)
    for a, b in zip(got, expected, strict=True):
        assert_equal(a, b, rel=1e-6)


@pytest.mark.parametrize("limit", [None, 0, 8, -1])
def test_every_path_and_policy_keeps_its_tensors_together(limit: int | None, gpu: Gpu) -> None:
    decoder = decoder_on(GPU)
    for path in (FastPath(decoder.model), PlainPath(decoder.model)):
        whole = path if limit is None else Grouped(path, limit)
        for options in ({"max_tokens": 60}, {"max_tokens": 16, "window": "sliding"}):
            scorer = Scorer(decoder, path=whole, **options)
            gpu.waits.clear()
            scores = scorer.score(TEXTS[:3])
            assert ours(gpu) == ["_to_copy"] * 4
            assert scorer.tokens(TEXTS[0], top_k=3).entropy.shape == (scores[0].n_tokens,)


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "scarce experts"])
def test_models_that_look_at_the_batch_or_remember(kind: str, gpu: Gpu) -> None:
    here, there = (decoder_of(MODELS[kind][0]()) for _ in range(2))
    model = to_gpu(there.model)
    there = dataclasses.replace(there, load=lambda: model, device=GPU)
    scorers = [Scorer(decoder, max_tokens=200, path=choose_path(decoder)[0]) for decoder in (here, there)]
    assert scorers[0].path.name == scorers[1].path.name
    expected, got = (scorer.score(BATCH) for scorer in scorers)
    for a, b in zip(got, expected, strict=True):
        assert_equal(a, b, rel=1e-6)


def test_questions_are_answered_there_too(gpu: Gpu) -> None:
    contexts, endings = [SENTENCES[0], "a model"], [["jumps", "sleeps now"], ["reads", "is a fox"]]
    readings = []
    for device in (GPU, torch.device("cpu")):
        decoder = decoder_on(device)
        reader = Reader(decoder, choose_path(decoder)[0])
        assert reader.shared, reader.note
        readings.append(reader.read(reader.encode(contexts, endings)))
    for a, b in zip(*readings, strict=True):
        assert a.entropy == pytest.approx(b.entropy, rel=1e-5)
        assert [x.sum() for x in a.surprisal] == pytest.approx([x.sum() for x in b.surprisal], rel=1e-5)


def test_the_benchmark_says_that_it_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setitem(sys.modules, "scoring", None)  # is put back, as it was
    del sys.modules["scoring"]
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(folder / "gpu.py"), run_name="__main__")
    said = capsys.readouterr()
    assert (end.value.code, said.out) == (2, "")
    assert said.err == "benchmarks/gpu.py needs a GPU with CUDA, and PyTorch sees none here.\n"
