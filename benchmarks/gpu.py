"""How fast the scorer is on a GPU, as ratios against plain ways to compute the same numbers, all in one run.

    python benchmarks/gpu.py [--model smollm2-135m-instruct] [--texts 2000] [--rounds 3] [--dtypes bf16] [--out bench]

Without CUDA it says so, and exits with 2. Contenders, on the same texts of 60 to 3,000 characters, cut at 512 tokens:
  plain      right-padded batches of 32 sorted by length, full logits, a log-softmax each for entropy and varentropy
  blocks     the scorer, its head in blocks of logits by PyTorch
  fused      the scorer, its head and statistics in one Triton kernel (where there is Triton)
  vllm       prompt log-probabilities of vLLM (where it is installed): surprisal alone, in a process of its own
  products   nothing but the matrix products of the model's layer shapes (2 x parameters FLOP a token)
and for the head alone, on hidden states of 16,384 positions: plain, blocks, fused, and its product.

Peak memory is what PyTorch held at once, the model included. The share of the device's peak counts 2 x parameters FLOP
a token; name the peak with --flops where the GPU is not in the list below. Rounds are interleaved and medians taken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scoring import in_batches, mixed_texts, run_plain, twice_log_softmax
from torch import Tensor, nn

from fluxentropy.entropy import token_stats
from fluxentropy.models.forward import FastPath, can_fuse
from fluxentropy.models.loading import Decoder, load_decoder
from fluxentropy.models.paths import choose_path
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.files import write_json
from fluxentropy.scoring.scorer import Scorer

MAX_TOKENS, BATCH, HEAD_ROWS, PLAIN_ROWS = 512, 32, 16384, 1024
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}  # bf16, dense
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}  # nats, of a text's mean entropy

Ways = dict[str, Callable[[], int]]  # each returns its tokens


# --- the contenders ---------------------------------------------------------------------------------------------------


def whole_ways(decoder: Decoder, texts: list[str]) -> Ways:
    """The ways to score `texts`, after they were seen to agree."""
    path, note = choose_path(decoder)
    print(note)
    scorers = {"blocks": Scorer(decoder, max_tokens=MAX_TOKENS, path=FastPath(decoder.model))}
    if path and path.name == "fast, fused head":
        scorers["fused"] = Scorer(decoder, max_tokens=MAX_TOKENS, path=path)
    encoded = scorers["blocks"].encode(texts)
    rows = sorted((torch.from_numpy(item.ids) for item in encoded if len(item.ids)), key=len, reverse=True)
    tokens = sum(map(len, rows))

    def plain() -> int:
        run_plain(decoder, in_batches(rows, BATCH), twice_log_softmax)
        return tokens

    def ours(scorer: Scorer) -> Callable[[], int]:
        def run() -> int:
            scorer.score_encoded(encoded)
            return tokens

        return run

    few = [torch.from_numpy(item.ids) for item in encoded[:8]]
    expected = run_plain(decoder, in_batches(few, 1), twice_log_softmax)
    for name, scorer in scorers.items():
        found = [scores.entropy_mean or 0.0 for scores in scorer.score(texts[:8])]
        error = max(abs(a - b) for a, b in zip(expected, found, strict=True))
        print(f"{name}: batches of {scorer.batch_tokens:,} tokens, mean entropies within {error:.1g} nats of plain")
        assert error < TOLERANCE[decoder.dtype], (name, error)
    return {"plain": plain, **{name: ours(scorer) for name, scorer in scorers.items()}, "products": products(decoder)}


def products(decoder: Decoder) -> Callable[[], int]:
    """The matrix products of every linear layer, for HEAD_ROWS rows at a time."""
    layers = [module for module in decoder.model.modules() if isinstance(module, nn.Linear)]
    inputs = {
        width: torch.randn(HEAD_ROWS, width, device=decoder.device, dtype=decoder.dtype)
        for width in {layer.in_features for layer in layers}
    }

    def run() -> int:
        with torch.inference_mode():
            for layer in layers:
                x = inputs[layer.in_features]
                for part in x.split(PLAIN_ROWS) if layer.out_features > 2**15 else [x]:
                    layer(part)
        return HEAD_ROWS

    return run


def head_ways(decoder: Decoder) -> Ways:
    """Ways to get the statistics of HEAD_ROWS positions from their hidden states; `product` is the projection alone."""
    path = FastPath(decoder.model)
    projection = decoder.model.get_output_embeddings()
    assert isinstance(projection, nn.Linear)
    hidden = torch.randn(HEAD_ROWS, projection.in_features, device=decoder.device, dtype=decoder.dtype)
    targets = torch.randint(projection.out_features, (HEAD_ROWS,), device=decoder.device)

    def each(function: Callable[[Tensor], Any], rows: int = PLAIN_ROWS) -> Callable[[], int]:
        def run() -> int:
            with torch.inference_mode():
                for part in hidden.split(rows):
                    function(part)
            return HEAD_ROWS

        return run

    ways: Ways = {
        "plain": each(lambda x: twice_log_softmax(projection(x))),
        "blocks": each(lambda x: token_stats(x, targets[: len(x)], head=path.head), HEAD_ROWS),
        "product": each(projection),
    }
    if can_fuse(decoder.device, decoder.dtype):
        from fluxentropy.models.fusedhead import fused_stats

        weight, bias = projection.weight, projection.bias
        ways["fused"] = each(lambda x: fused_stats(x, weight, targets[: len(x)], bias=bias), HEAD_ROWS)
    return ways


def vllm_rate(decoder: Decoder, dtype: str, texts: list[str], rounds: int) -> float | None:
    """Tokens a second of vLLM's prompt log-probabilities, in a process of its own; None where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        print("vllm is not installed: left out")
        return None
    with tempfile.TemporaryDirectory() as folder:
        decoder.model.save_pretrained(folder)
        decoder.tokenizer.save_pretrained(folder)
        ids = [decoder.tokenizer(text).input_ids[:MAX_TOKENS] for text in texts]
        (Path(folder) / "ids.json").write_text(json.dumps([row for row in ids if row]))
        command = [sys.executable, __file__, "--vllm", folder, "--dtypes", dtype, "--rounds", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print("vllm failed: " + (done.stderr.strip().splitlines() or ["without a word"])[-1])
        return None
    return float(done.stdout.strip().splitlines()[-1])


def run_vllm(folder: str, dtype: str, rounds: int) -> None:
    """Print the median tokens a second of vLLM on the rows of `folder`/ids.json."""
    import vllm

    kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype]
    rows = json.loads((Path(folder) / "ids.json").read_text())
    model = vllm.LLM(model=folder, dtype=kind, max_model_len=MAX_TOKENS + 1, enable_prefix_caching=False)
    wanted = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": row} for row in rows]
    rates = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        model.generate(prompts, wanted, use_tqdm=False)
        rates.append(sum(map(len, rows)) / (time.perf_counter() - started))
    print(statistics.median(rates[1:]))


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(title: str, ways: Ways, rounds: int) -> dict[str, dict[str, float]]:
    """The median tokens a second and the peak memory in GiB of each way, after a first round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            tokens = way()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            peaks[name] = torch.cuda.max_memory_allocated() / 2**30
            if number:
                rates[name].append(tokens / seconds)
                print(f"{title} round {number}: {name:9} {tokens / seconds:12,.0f} tok/s {peaks[name]:6.2f} GiB")
    return {
        name: {"tokens_per_second": statistics.median(rates[name]), "peak_memory_gib": round(peaks[name], 3)}
        for name in ways
    }


def measure(dtype: str, options: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    decoder = load_decoder(find_model(options.model), device="cuda", dtype=dtype)
    texts = mixed_texts(options.texts)
    whole = measured(f"{dtype} texts", whole_ways(decoder, texts), options.rounds)
    head = measured(f"{dtype} head", head_ways(decoder), options.rounds)
    projection = decoder.model.get_output_embeddings()
    assert isinstance(projection, nn.Linear)
    for way in head.values():
        way["logits_per_second"] = way["tokens_per_second"] * projection.out_features
    work = 2 * decoder.model.num_parameters()
    for way in whole.values():
        way["share_of_products"] = way["tokens_per_second"] / whole["products"]["tokens_per_second"]
        if peak and dtype != "fp32":
            way["share_of_peak"] = way["tokens_per_second"] * work / peak
    if rate := vllm_rate(decoder, dtype, texts, options.rounds):
        whole["vllm"] = {"tokens_per_second": rate}
    return {"texts": whole, "head": head}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="bf16")
    parser.add_argument("--flops", type=float, help="the GPU's peak, a second, of dense products in bf16")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--vllm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a GPU with CUDA, and PyTorch sees none here.", file=sys.stderr)
        raise SystemExit(2)
    if options.vllm:
        run_vllm(options.vllm, options.dtypes, options.rounds)
        return
    device = torch.cuda.get_device_name()
    peak = options.flops or next((flops for name, flops in PEAK.items() if name in re.split(r"[\s-]", device)), None)
    print(f"{device}, peak {'not known' if peak is None else f'{peak / 1e12:.0f} TFLOP/s'}")
    results = {dtype: measure(dtype, options, peak) for dtype in options.dtypes.split(",")}
    for dtype, result in results.items():
        for title in ("texts", "head"):
            rates = {name: way["tokens_per_second"] for name, way in result[title].items()}
            best = "fused" if "fused" in rates else "blocks"
            others = ", ".join(f"{rates[best] / rate:.2f} x {name}" for name, rate in rates.items() if name != best)
            print(f"{dtype} {title}: {best} {rates[best]:,.0f} tok/s = {others}")
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "triton") if importlib.util.find_spec(name)
    }
    write_json(options.out / "gpu.json", {"device": device, "peak_flops": peak, **versions, "results": results})


if __name__ == "__main__":
    main()
