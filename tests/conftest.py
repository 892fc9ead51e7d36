"""What all tests share: the order in which they run, and no model hub."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real model run last."""
    items.sort(key=lambda item: item.get_closest_marker("real_model") is not None)
