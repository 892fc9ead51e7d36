"""How fast commands are beside processes that take the cores away, as ratios to their speed without them.

    python benchmarks/busy.py [--commands score,hellaswag] [--spinning 0,1,2] [--texts 48] [--rounds 3] [--dtype fp32]

In each round, for each number of processes that do nothing but count, every command runs once as a user would start it:
`score` on the texts of scoring.py, `hellaswag` on a question for each text, whose second half is the four endings;
their speeds are by the clock and by the command's own account, in tokens a second. `zoo` (a zoo of that model alone) on
the same texts and `compare` (two workers, eight runs of a GPT of 0.3 M parameters) are timed from start to end, and
their speeds are commands an hour. The ratios are to the speed in the same
round without such processes, and medians are taken. On two cores the fair shares beside one and two are 0.75 and 0.5.
The CPU time that others took is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import yaml
from scoring import mixed_texts

from fluxentropy.models.zoo import zoo_path
from fluxentropy.ordering.bin import bin_corpus
from fluxentropy.ordering.options import BinConfig
from fluxentropy.runs.files import write_json, write_text

MODEL = "smollm2-135m-instruct"
COMMANDS = {"score": "tok/s", "hellaswag": "tok/s", "zoo": "an hour", "compare": "an hour"}
COMPARED = {
    "base": {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 96},
        "tokens": 32768,
        "batch_size": 16,
        "holdout": 4,
        "accelerator": "cpu",
    },
    "arms": {"increasing": {"schedule": {"name": "increasing"}}},
    "controls": [],
    "seeds": 4,
}


@contextlib.contextmanager
def spinning(number: int) -> Iterator[None]:
    """So many processes that each keep a core busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def write_data(folder: Path, number: int) -> None:
    """`score.jsonl`: texts. `hellaswag.jsonl`: the same as questions, four pieces of each as the endings."""
    texts = mixed_texts(number)
    questions: list[dict[str, object]] = []
    for i, text in enumerate(texts):
        piece = len(text) // 8
        cuts = [len(text) - k * piece for k in (4, 3, 2, 1, 0)]
        endings = [text[start:stop] for start, stop in pairwise(cuts)]
        questions.append({"ind": i, "ctx": text[: cuts[0]], "endings": endings, "label": 0})
    rows_of: dict[str, list[dict[str, object]]] = {"score": [{"text": text} for text in texts], "hellaswag": questions}
    for name, rows in rows_of.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    one = yaml.safe_load(zoo_path(Path("offline")).read_text())["models"][MODEL]
    write_text(folder / "zoo.yaml", yaml.safe_dump({"models": {MODEL: one}}))
    write_text(folder / "compare.yaml", yaml.safe_dump(COMPARED))
    write_text(
        folder / "long.jsonl", "".join(json.dumps({"text": text, "n": len(text)}) + "\n" for text in mixed_texts(400))
    )
    bin_corpus(
        BinConfig(
            run=str(folder / "long.jsonl"), by=("n",), bins=4, tokenize="bytes", block_length=256, out=folder / "bins"
        )
    )


def speed(command: str, folder: Path, dtype: str) -> float:
    """Of one run of the command, see the module; tokens a second of `hellaswag` are in the last line of its progress.

    Errors: SystemExit with what the command said, when it fails.
    """
    model = ["--model", MODEL, "--dtype", dtype]
    options = {
        "score": [folder / "score.jsonl", *model],
        "hellaswag": ["--data", folder / "hellaswag.jsonl", *model],
        "zoo": [folder / "score.jsonl", "--zoo", folder / "zoo.yaml", "--dtype", dtype],
        "compare": ["--config", folder / "compare.yaml", "--bins", folder / "bins", "--workers", "2"],
    }[command]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        line = [sys.executable, "-m", "fluxentropy", command, *map(str, options)]
        done = subprocess.run([*line, "--out", f"{out}/run", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    if COMMANDS[command] == "an hour":
        return 3600 / (time.perf_counter() - started)
    if command == "score":
        return float(json.loads(done.stdout)["tokens_per_second"])
    number, thousands = re.findall(r"([\d.]+)(k?) tok/s", done.stderr)[-1]
    return float(number) * (1000 if thousands else 1)


def cpu_seconds() -> float:
    """Of everything on this machine but this process and its children that have ended."""
    everything, me = psutil.cpu_times(), psutil.Process().cpu_times()
    mine = me.user + me.system + me.children_user + me.children_system
    return float(everything.user + everything.system + everything.nice - mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default="score,hellaswag")
    parser.add_argument("--spinning", default="0,1,2")
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    commands, numbers = options.commands.split(","), [int(number) for number in options.spinning.split(",")]
    if unknown := set(commands) - set(COMMANDS):
        parser.error(f"--commands {', '.join(unknown)}: use {', '.join(COMMANDS)}")
    if numbers[0] != 0:
        parser.error("--spinning: begin with 0, what the ratios are to")
    speeds: dict[str, dict[int, list[float]]] = {command: {number: [] for number in numbers} for command in commands}
    others: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.texts)
        for turn in range(options.rounds):
            for number in numbers:
                for command in commands:
                    before, started = cpu_seconds(), time.perf_counter()
                    with spinning(number):
                        speeds[command][number].append(speed(command, folder, options.dtype))
                    others.append(max(cpu_seconds() - before, 0.0) / (time.perf_counter() - started))
                    print(
                        f"round {turn + 1}: {command:10} beside {number}: {speeds[command][number][-1]:8.1f} "
                        f"{COMMANDS[command]}   others {others[-1]:.2f} cores",
                        flush=True,
                    )
    print(f"{'':10} {'beside':>6} {'speed':>8} {'ratio':>6}  of rounds")
    results: dict[str, dict[int, dict[str, object]]] = {}
    for command, by_number in speeds.items():
        for number, found in by_number.items():
            ratios = [one / quiet for one, quiet in zip(found, by_number[0], strict=True)]
            median, ratio = statistics.median(found), statistics.median(ratios)
            results.setdefault(command, {})[number] = {
                "speed": median,
                "unit": COMMANDS[command],
                "ratio": ratio,
                "ratios": ratios,
            }
            print(f"{command:10} {number:6} {median:8.1f} {ratio:6.2f}  {min(ratios):.2f} - {max(ratios):.2f}")
    setting = {"cores": psutil.cpu_count(), "dtype": options.dtype, "texts": options.texts}
    write_json(options.out / "busy.json", {**setting, "other_cores": statistics.median(others), "results": results})


if __name__ == "__main__":
    main()
