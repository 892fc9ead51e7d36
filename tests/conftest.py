"""What all tests share: the order in which they run, and no model hub."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test at once: each has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real model run last."""
    items.sort(key=lambda item: item.get_closest_marker("real_model") is not None)
