"""How fast the scorer is, as ratios against plain ways to compute the same numbers, all in one run.

    python benchmarks/scoring.py [--rounds 3] [--texts 26] [--dtypes fp32,bf16] [--out bench]

Contenders, on the same texts of 60 to 3,000 characters, cut at 512 tokens:
  plain      right-padded batches of 26 in arrival order, full logits, a log-softmax each for entropy and varentropy
  single     the same, one text at a time
  sorted     batches of 26 sorted by length, full log-softmax once, as evaluation harnesses do
  ours       the scorer
  roofline   nothing but the matrix products of the model's layer shapes (2 x parameters FLOP a token), by the faster of
             torch's own product and oneDNN's with packed weights

Rounds are interleaved and medians taken. The CPU time that other processes took meanwhile is reported with them.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from fluxentropy.cli.app import keep_freed_memory
from fluxentropy.cli.passages import passages
from fluxentropy.models.linear import PackedLinear, can_pack
from fluxentropy.models.loading import Decoder, load_decoder
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.files import write_json, write_text
from fluxentropy.scoring.scorer import Scorer, open_scorer

MAX_TOKENS, BATCH, ROOFLINE_ROWS = 512, 26, 2048


def mixed_texts(number: int, seed: int = 0) -> list[str]:
    """Texts of 60 to 3,000 characters, lengths log-uniform, from the documentation that comes with Python."""
    rng = random.Random(seed)
    source = " ".join(record["text"] for record in passages(400))
    texts = []
    for _ in range(number):
        length = round(60 * 50 ** rng.random())
        start = rng.randrange(len(source) - length)
        texts.append(source[start : start + length])
    return texts


# --- the plain ways ---------------------------------------------------------------------------------------------------


def twice_log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and varentropy (B, T) the way most scripts do it: a log-softmax for each."""
    logp = torch.log_softmax(logits.float(), -1)
    entropy = -(logp.exp() * logp).sum(-1)
    logp = torch.log_softmax(logits.float(), -1)
    return entropy, (logp.exp() * (logp + entropy.unsqueeze(-1)) ** 2).sum(-1)


def once_log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(logits.float(), -1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    return entropy, (p * (logp + entropy.unsqueeze(-1)) ** 2).sum(-1)


def run_plain(
    decoder: Decoder, batches: list[list[Tensor]], stats: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> list[float]:
    """Mean entropies of the texts in `batches`, with full logits of right-padded rows and an attention mask."""
    means: list[float] = []
    for batch in batches:
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True).to(decoder.device)
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in batch])
        with torch.inference_mode():
            entropy, _ = stats(decoder.model(input_ids=ids, attention_mask=mask.to(ids.device), use_cache=False).logits)
        means += [float(row[keep].mean()) for row, keep in zip(entropy.cpu(), mask, strict=True)]
    return means


def in_batches(rows: list[Tensor], size: int) -> list[list[Tensor]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


# --- the roofline -----------------------------------------------------------------------------------------------------


def roofline(decoder: Decoder, packed: bool) -> Callable[[], int]:
    """A function that does the matrix products of every linear layer for some rows, and returns the number of rows."""
    shapes: dict[tuple[int, int], int] = {}
    for module in decoder.model.modules():
        if isinstance(module, nn.Linear):
            key = (module.in_features, module.out_features)
            shapes[key] = shapes.get(key, 0) + 1
    layers = []
    for (width, out), count in shapes.items():
        slices = [min(2048, out - start) for start in range(0, out, 2048)] if out > 8192 else [out]
        for size in slices:
            linear = nn.Linear(width, size, bias=False, device=decoder.device, dtype=decoder.dtype)
            x = torch.randn(ROOFLINE_ROWS, width, device=decoder.device, dtype=decoder.dtype)
            layers.append((PackedLinear(linear.weight.data) if packed else linear, x, count))

    def run() -> int:
        with torch.inference_mode():
            for layer, x, count in layers:
                for _ in range(count):
                    layer(x)
            if decoder.device.type == "cuda":
                torch.cuda.synchronize()
        return ROOFLINE_ROWS

    return run


# --- measuring --------------------------------------------------------------------------------------------------------


def timed(function: Callable[[], int]) -> tuple[float, float]:
    """Tokens a second of `function`, which returns its tokens, and the cores that other processes used meanwhile."""
    me = psutil.Process()
    before, own = psutil.cpu_times(), me.cpu_times()
    started = time.perf_counter()
    tokens = function()
    seconds = time.perf_counter() - started
    after, own_after = psutil.cpu_times(), me.cpu_times()
    busy = sum(getattr(after, key) - getattr(before, key) for key in ("user", "system", "nice"))
    mine = own_after.user - own.user + own_after.system - own.system
    return tokens / seconds, max(busy - mine, 0.0) / seconds


def contenders(dtype: str, texts: list[str]) -> dict[str, Callable[[], int]]:
    plain = load_decoder(find_model("smollm2-135m-instruct"), dtype=dtype)
    ours, notes = open_scorer(find_model("smollm2-135m-instruct"), dtype=dtype, max_tokens=MAX_TOKENS)
    print(*notes, sep="\n")
    encoded = ours.encode(texts)
    rows = [torch.from_numpy(item.ids) for item in encoded]
    by_length = sorted(rows, key=len, reverse=True)
    tokens = sum(map(len, rows))

    def baseline(batches: list[list[Tensor]], stats: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[], int]:
        def run() -> int:
            run_plain(plain, batches, stats)
            return tokens

        return run

    def score() -> int:
        ours.score_encoded(encoded)
        return tokens

    ways = {
        "plain": baseline(in_batches(rows, BATCH), twice_log_softmax),
        "single": baseline(in_batches(rows, 1), twice_log_softmax),
        "sorted": baseline(in_batches(by_length, BATCH), once_log_softmax),
        "ours": score,
        "roofline": roofline(plain, packed=False),
    }
    if can_pack(plain.device, plain.dtype):
        ways["roofline, packed"] = roofline(plain, packed=True)
    check(plain, ours, rows, texts)
    return ways


def check(plain: Decoder, ours: Scorer, rows: list[Tensor], texts: list[str]) -> None:
    """Both ways must give the same entropies, or their speeds say nothing."""
    expected = run_plain(plain, in_batches(rows[:4], 1), once_log_softmax)
    got = [scores.entropy_mean or 0.0 for scores in ours.score(texts[:4])]
    error = max(abs(a - b) for a, b in zip(expected, got, strict=True))
    print(f"largest difference of mean entropies from the plain way: {error:.1g} nats")
    assert error < (1e-3 if plain.dtype == torch.float32 else 0.1), error


def measure(dtype: str, texts: list[str], rounds: int) -> dict[str, Any]:
    ways = contenders(dtype, texts)
    for name in ("ours", "roofline"):
        ways[name]()  # warm up what compiles, allocates or packs on first use
    speed: dict[str, list[float]] = {name: [] for name in ways}
    others: list[float] = []
    for number in range(rounds):
        for name, function in ways.items():
            rate, load = timed(function)
            speed[name].append(rate)
            others.append(load)
            print(f"{dtype} round {number + 1}: {name:16} {rate:8.0f} tok/s   others {load:.2f} cores", flush=True)
    median = {name: statistics.median(values) for name, values in speed.items()}
    best = max(value for name, value in median.items() if name.startswith("roofline"))
    ratios = {name: median["ours"] / median[name] for name in ("plain", "single", "sorted")} | {
        "roofline": median["ours"] / best
    }
    return {"tokens_per_second": median, "ours_over": ratios, "other_cores": statistics.median(others)}


def peak_memory(dtype: str, texts: list[str]) -> int:
    """Peak resident bytes of `fluxentropy score` on the texts, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl"
        write_text(source, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        command = [sys.executable, "-m", "fluxentropy", "score", str(source), "--model", "smollm2-135m-instruct"]
        command += ["--dtype", dtype, "--out", str(Path(folder) / "run"), "--json"]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(result.stdout)["peak_memory_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=26)
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does; every contender gains
    texts = mixed_texts(options.texts)
    lengths = sorted(map(len, texts))
    print(f"{len(texts)} texts of {lengths[0]} to {lengths[-1]} characters, median {lengths[len(lengths) // 2]}")
    results = {dtype: measure(dtype, texts, options.rounds) for dtype in options.dtypes.split(",")}
    for dtype, result in results.items():
        result["peak_memory_gib"] = round(peak_memory(dtype, texts) / 2**30, 2)
        ratios = ", ".join(f"{value:.2f} x {name}" for name, value in result["ours_over"].items())
        print(
            f"{dtype}: {result['tokens_per_second']['ours']:.0f} tok/s = {ratios}; peak {result['peak_memory_gib']} GiB"
        )
    if len(results) > 1:
        first, *rest = results
        for dtype in rest:
            gain = results[dtype]["tokens_per_second"]["ours"] / results[first]["tokens_per_second"]["ours"]
            print(f"{dtype} is {gain:.2f} x {first}")
    write_json(
        options.out / "scoring.json", {"torch": torch.__version__, "cores": psutil.cpu_count(), "results": results}
    )


if __name__ == "__main__":
    main()
