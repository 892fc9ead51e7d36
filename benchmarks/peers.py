"""How fast the scorer is against what a user could pick instead, as ratios in one run.

    python benchmarks/peers.py [--texts 200] [--rounds 4] [--precisions fp32,bf16,int8] [--engines openvino,...]
        [--envs DIR] [--checked 8] [--max-tokens 512] [--threads N] [--out bench]

All give entropy, varentropy and surprisal over the whole vocabulary of the same token ids (SmolLM2-135M-Instruct, the
texts of scoring.py, their first 512 tokens at most):
  fluxentropy        the scorer
  transformers       one text at a time, full logits
  openvino           the statistics in the graph, a stream for each core, texts of like lengths in a batch
  onnxruntime        the statistics in the graph, one text at a time on all cores
  onnxruntime-cores  the same, a text on each core

Each runs in a process of its own; OpenVINO and ONNX Runtime in environments that are made below --envs when they are
first needed (1.6 GB). One that cannot be installed or fails is named and left out. `--checked` texts are first compared
with a reference in float64. Then the texts are dealt out over the rounds, so that each round has all lengths, and in a
round each contender does the same texts, one contender after the other. The ratios are to the scorer in float32 in
the same round, and medians are taken; Spearman's correlation of the texts' entropies is with the scorer in float32 too.
bf16 needs a processor with units for it. The CPU time that other processes took meanwhile is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy.stats import spearmanr
from scoring import MAX_TOKENS, mixed_texts

from fluxentropy.models.loading import find_decoder
from fluxentropy.models.tokenizers import Encoder
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.engine import default_threads
from fluxentropy.runs.files import write_json, write_text

MODEL = "smollm2-135m-instruct"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"
COMMON = ["numpy==2.4.6", "safetensors==0.8.0"]
PACKAGES = {  # of an engine that has an environment of its own
    "openvino": [TORCH, *COMMON, "openvino==2026.4.1", "nncf==3.4.0"],
    "onnxruntime": [*COMMON, "onnx==1.23.2", "onnxruntime==1.32.0"],
}
PRECISIONS = {
    "fluxentropy": ("fp32", "bf16", "int8"),
    "transformers": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32",),
    "onnxruntime-cores": ("fp32",),
}
ANCHOR = "fluxentropy fp32"
COLUMNS = ("entropy", "varentropy", "surprisal")
MALLOC = {  # what `keep_freed_memory` does for the command line, in glibc's own variables: every contender gains
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


class PeerError(Exception):
    """A contender that is left out, and why."""


# --- processes --------------------------------------------------------------------------------------------------------


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of an environment with these packages, which is made if it is not there or has others."""
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if stamp.is_file() and stamp.read_text() == " ".join(packages):
        return python
    print(f"installing {', '.join(packages)} into {folder}", flush=True)

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if TORCH in packages and pip("--no-deps", "--no-index", TORCH).returncode:  # alone and first: else with CUDA
        pip("--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", TORCH)
    done = pip(*packages)
    if done.returncode:
        raise PeerError(f"cannot be installed: {last_line(done.stderr)}")
    write_text(stamp, " ".join(packages))
    return python


def last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or ["it said nothing"])[-1].strip()


@dataclass(kw_only=True)
class Contender:
    """A process of peer_worker.py, and what was measured of it."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    errors: dict[str, float] = field(default_factory=dict)  # mean absolute differences from the reference, nats
    rates: list[float] = field(default_factory=list)  # tokens a second, by round
    others: list[float] = field(default_factory=list)  # cores that other processes used
    entropies: dict[int, float] = field(default_factory=dict)  # by text

    @classmethod
    def start(cls, name: str, job: Path, envs: Path, threads: int) -> Contender:
        engine, precision = name.split()
        package = engine.partition("-")[0]
        python = environment(envs / package, PACKAGES[package]) if package in PACKAGES else sys.executable
        log = job.parent / f"{name}.log"
        command = [str(python), str(Path(__file__).with_name("peer_worker.py")), engine, precision, str(job)]
        env = os.environ | MALLOC | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        with open(log, "w") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
            )
        return cls(name=name, process=process, log=log)

    def ask(self, texts: Sequence[int]) -> dict[str, Any]:
        """The answer for these texts, by number. Errors: PeerError when the process has failed."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(list(texts)) + "\n")
            self.process.stdin.flush()
            return dict(json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, json.JSONDecodeError) as error:
            self.process.kill()
            raise PeerError(f"failed: {last_line(self.log.read_text())}") from error

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


# --- measuring --------------------------------------------------------------------------------------------------------


def check(contender: Contender, texts: Sequence[int], expected: dict[str, list[float]]) -> None:
    """Compare with the reference. A contender that gives other numbers does other work, and is left out."""
    answer = contender.ask(texts)
    for column in COLUMNS:
        contender.errors[column] = float(np.abs(np.subtract(answer[column], expected[column])).mean())
    rank = spearman(answer["entropy"], expected["entropy"])
    print(
        f"{contender.name:24} mean abs dH {contender.errors['entropy']:.1e}, dV {contender.errors['varentropy']:.1e}, "
        f"dS {contender.errors['surprisal']:.1e} nats, Spearman {rank:.4f}",
        flush=True,
    )
    limit = 1e-3 if contender.name.endswith("fp32") else 0.5
    if not contender.errors["entropy"] < limit:
        raise PeerError(f"gives other numbers: entropies are {contender.errors['entropy']:.2g} nats off")


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return float(spearmanr(a, b).statistic) if len(a) > 1 else float("nan")


def one_round(contender: Contender, texts: Sequence[int], tokens: int) -> None:
    def busy() -> float:
        times, own = psutil.cpu_times(), psutil.Process(contender.process.pid).cpu_times()
        return float(times.user + times.system + times.nice - own.user - own.system)

    before = busy()
    answer = contender.ask(texts)
    contender.others.append(max(busy() - before, 0.0) / answer["seconds"])
    contender.rates.append(tokens / answer["seconds"])
    contender.entropies |= dict(zip(texts, answer["entropy"], strict=True))
    print(
        f"round {len(contender.rates)}: {contender.name:24} {contender.rates[-1]:8.0f} tok/s   "
        f"others {contender.others[-1]:.2f} cores",
        flush=True,
    )


def names(options: argparse.Namespace) -> list[str]:
    """The contenders that were asked for, the anchor first; those that this machine cannot have are named."""
    bf16 = has_bf16()
    if "bf16" in options.precisions and not bf16:
        print("bf16: left out, this processor has no units for it")
    wanted = [
        f"{engine} {precision}"
        for engine in options.engines
        for precision in PRECISIONS[engine]
        if precision in options.precisions and (precision != "bf16" or bf16)
    ]
    return [ANCHOR, *(name for name in wanted if name != ANCHOR)]


def has_bf16() -> bool:
    return any(torch.cpu.get_capabilities().get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def measure(options: argparse.Namespace, folder: Path) -> list[Contender]:
    decoder = find_decoder(find_model(MODEL), device="cpu", dtype="fp32")
    ids = [
        item.ids.tolist() for item in Encoder(decoder.tokenizer, options.max_tokens).encode(mixed_texts(options.texts))
    ]
    job = folder / "job.json"
    facts = {"name": MODEL, "model": str(decoder.folder), "max_tokens": options.max_tokens, "ids": ids}
    write_json(job, facts | {"threads": options.threads, "bf16": has_bf16()})
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    checked = order[len(ids) // (2 * options.checked) :: max(len(ids) // options.checked, 1)][: options.checked]
    print(f"{len(ids)} texts, {sum(map(len, ids)):,} tokens; {len(checked)} of them in float64 first", flush=True)
    reference = Contender.start("reference float64", job, options.envs, options.threads)
    expected = reference.ask(checked)
    reference.stop()

    contenders: list[Contender] = []
    shares = [order[start :: options.rounds] for start in range(options.rounds)]

    def try_each(items: Sequence[Any], step: Callable[[Any], None]) -> None:
        for item in items:
            try:
                step(item)
            except PeerError as error:
                name = item if isinstance(item, str) else item.name
                if name == ANCHOR:
                    raise SystemExit(f"{name} {error}") from error
                print(f"{name} is left out: it {error}", flush=True)
                contenders[:] = [contender for contender in contenders if contender.name != name]

    def begin(name: str) -> None:
        contender = Contender.start(name, job, options.envs, options.threads)
        contenders.append(contender)
        check(contender, checked, expected)

    try:
        try_each(names(options), begin)
        for share in shares:
            tokens = sum(len(ids[i]) for i in share)
            try_each(list(contenders), partial(one_round, texts=share, tokens=tokens))
    finally:
        for contender in contenders:
            contender.stop()
    return contenders


def summary(contender: Contender, anchor: Contender) -> dict[str, Any]:
    ratios = [own / other for own, other in zip(contender.rates, anchor.rates, strict=True)]
    texts = sorted(anchor.entropies)
    return {
        "tokens_per_second": statistics.median(contender.rates),
        "over_ours_fp32": statistics.median(ratios),
        "ratios": ratios,
        "errors": contender.errors,
        "spearman_with_ours_fp32": spearman(
            [contender.entropies[i] for i in texts], [anchor.entropies[i] for i in texts]
        ),
        "other_cores": statistics.median(contender.others),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--checked", type=int, default=8)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["fp32", "bf16", "int8"])
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(PRECISIONS))
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--envs", type=Path, default=Path("bench") / "envs")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    if unknown := set(options.engines) - set(PRECISIONS):
        parser.error(f"--engines {', '.join(unknown)}: use {', '.join(PRECISIONS)}")
    if not 0 < options.checked <= options.texts or not 0 < options.rounds <= options.texts:
        parser.error("--checked and --rounds: at least 1, and at most as many as --texts")
    with tempfile.TemporaryDirectory() as folder:
        contenders = measure(options, Path(folder))
    found = {contender.name: summary(contender, contenders[0]) for contender in contenders}
    print(f"{'':24} {'tok/s':>7} {'ratio':>6}  {'of rounds':12} {'dH':>8} {'Spearman':>9}  others")
    for name, row in found.items():
        span = f"{min(row['ratios']):.2f} - {max(row['ratios']):.2f}"
        print(
            f"{name:24} {row['tokens_per_second']:7.0f} {row['over_ours_fp32']:6.2f}  {span:12} "
            f"{row['errors']['entropy']:8.1e} {row['spearman_with_ours_fp32']:9.5f}  {row['other_cores']:.2f}"
        )
    facts = {"torch": torch.__version__, "threads": options.threads, "texts": options.texts, "packages": PACKAGES}
    write_json(options.out / "peers.json", {**facts, "results": found})


if __name__ == "__main__":
    main()
