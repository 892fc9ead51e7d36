"""How fast commands are beside processes that take the cores away, as ratios to their speed without them.

    python benchmarks/busy.py [--commands score,hellaswag] [--spinning 0,1,2] [--texts 48] [--rounds 3] [--dtype fp32]

In each round, for each number of processes that do nothing but count, every command runs once as a user would start it:
`score` on the texts of scoring.py, `hellaswag` on a question for each text, whose second half is the four endings.
Speeds are by the clock and by the command's own account, in tokens a second. The ratios are to the speed in the same
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
from scoring import mixed_texts

from fluxentropy.runs.files import write_json, write_text

MODEL = "smollm2-135m-instruct"
COMMANDS = ("score", "hellaswag")


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


def speed(command: str, folder: Path, dtype: str) -> float:
    """Tokens a second of one run of the command, by its own account: for `hellaswag` the last line of its progress.

    Errors: SystemExit with what the command said, when it fails.
    """
    source = [*(["--data"] if command == "hellaswag" else []), str(folder / f"{command}.jsonl")]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        line = [sys.executable, "-m", "fluxentropy", command, *source, "--model", MODEL, "--dtype", dtype]
        done = subprocess.run([*line, "--out", f"{out}/run", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
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
                        f"round {turn + 1}: {command:10} beside {number}: {speeds[command][number][-1]:8.1f} tok/s   "
                        f"others {others[-1]:.2f} cores",
                        flush=True,
                    )
    print(f"{'':10} {'beside':>6} {'tok/s':>8} {'ratio':>6}  of rounds")
    results: dict[str, dict[int, dict[str, object]]] = {}
    for command, by_number in speeds.items():
        for number, found in by_number.items():
            ratios = [one / quiet for one, quiet in zip(found, by_number[0], strict=True)]
            median, ratio = statistics.median(found), statistics.median(ratios)
            results.setdefault(command, {})[number] = {"tokens_per_second": median, "ratio": ratio, "ratios": ratios}
            print(f"{command:10} {number:6} {median:8.1f} {ratio:6.2f}  {min(ratios):.2f} - {max(ratios):.2f}")
    facts = {"cores": psutil.cpu_count(), "dtype": options.dtype, "texts": options.texts}
    write_json(options.out / "busy.json", {**facts, "other_cores": statistics.median(others), "results": results})


if __name__ == "__main__":
    main()
