"""What all tests share: the order in which they run, and no model hub."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a background job: tests interrupt the programs they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test at once: each has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real model run last."""
    items.sort(key=lambda item: item.get_closest_marker("real_model") is not None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all else in a small comparison."""
    monkeypatch.setattr("fluxentropy.comparison_figures.draw_comparison", lambda *_: [])


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
