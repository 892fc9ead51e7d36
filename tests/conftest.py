"""What all tests share: the order in which they run, and no model hub."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a background job: tests interrupt the programs they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test at once: each has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files whose tests take long one by one: they train, draw, kill commands or start programs.
SLOW_FILES = [
    "agreement/agree",
    "agreement/agree_zoo",
    "agreement/figures",
    "cli/app",
    "cli/demo",
    "cli/passages",
    "corpus/corpus",
    "corpus/readers",
    "corpus/textfiles",
    "evaluation/diagnose",
    "evaluation/diagnostics",
    "evaluation/logistic",
    "evaluation/statistics",
    "experiments/controllers",
    "experiments/schedules",
    "experiments/study/study",
    "figures",
    "models/adapters",
    "models/forward",
    "models/fusedhead",
    "models/gguf",
    "models/gguffile",
    "models/weights",
    "ordering/bin",
    "ordering/blocks",
    "ordering/old_layout",
    "ordering/quantiles",
    "ordering/sort",
    "package",
    "pretraining/export",
    "pretraining/pretrain",
    "pretraining/trainer",
    "programs/pipelines",
    "programs/published_study",
    "report/page",
    "rl/control/control_loop",
    "rl/grpo/attribution",
    "rl/grpo/figures",
    "rl/grpo/grpo",
    "rl/grpo/module",
    "rl/grpo/update",
    "rl/probe/kernel",
    "rl/probe/probe",
    "rl/trl",
    "runs/engine",
    "runs/mergesort",
    "schedules/order",
    "schedules/orders_page",
    "schedules/show",
    "scoring/dataset",
    "scoring/datatrove",
    "scoring/engines",
    "scoring/gpu",
    "scoring/score",
    "verification/faults",
    "verification/verify",
]

settings.register_profile("small", max_examples=40, deadline=None)
settings.load_profile("small")


def room_and_name(path: Path) -> str:
    """tests/runs/test_engine.py -> runs/engine"""
    inside = path.relative_to(TESTS) if path.is_relative_to(TESTS) else path  # doctests lie elsewhere
    return inside.with_suffix("").as_posix().replace("test_", "")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what holds no test: importing it takes seconds. So do files that are slow as a whole."""
    if collection_path.suffix != ".py" or TESTS not in collection_path.parents:
        return None
    name = collection_path.stem
    slow = config.getoption("markexpr") == "not slow" and room_and_name(collection_path) in SLOW_FILES
    return True if slow or not name.startswith("test_") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow. It runs last, but first where several processes share the files: they then end together."""
    for item in items:
        if room_and_name(item.path) in SLOW_FILES or item.get_closest_marker("real_model"):
            item.add_marker("slow")

    def place(item: pytest.Item) -> int:
        return sum(item.get_closest_marker(name) is not None for name in ("real_model", "slow"))

    items.sort(key=place, reverse="PYTEST_XDIST_WORKER" in os.environ)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`program(path, *arguments)` runs a program of the checkout in this process -> exit code, stdout, stderr."""

    def run(path: str, *arguments: object) -> tuple[int, str, str]:
        file = TESTS.parent / path
        monkeypatch.syspath_prepend(file.parent)
        monkeypatch.setattr(sys, "argv", [file.name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(file), run_name="__main__")
        return end.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


@pytest.fixture
def pipeline(program: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """`pipeline(name, *arguments)` runs a program of pipelines/ to its end and returns what it prints."""

    def run(name: str, *arguments: object) -> str:
        code, out, err = program(f"pipelines/{name}", *arguments)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all else in a small comparison."""
    monkeypatch.setattr("fluxentropy.experiments.figures.draw_comparison", lambda *_: [])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests that train: the same bits on every machine, and no waiting for each other's threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


def _sketched() -> Iterator[None]:
    """Pictures are built as ever, but neither laid out nor drawn: their files hold a dot."""  # most of their time
    from matplotlib.figure import Figure
    from PIL import Image

    def savefig(self: Figure, path: Path, **_: object) -> None:
        if path.suffix == ".svg":
            path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')
        else:
            Image.new("L", (1, 1)).save(path, "png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxentropy.figures.settle", lambda figure: None)
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture
def sketches() -> Iterator[None]:
    """For a test of a command that draws, where the pictures themselves are not the point."""
    yield from _sketched()


@pytest.fixture(scope="module")
def module_sketches() -> Iterator[None]:
    yield from _sketched()
