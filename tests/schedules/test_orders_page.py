"""docs/orders.md as it stands: the Trainer and a loop in PyTorch see what `order` wrote, in its order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenruns import LENGTH, write_bins
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

import fluxentropy as fe

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[2] / "docs" / "orders.md"


def examples() -> dict[str, str]:
    """The programs of the page, by the heading they stand under."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: found[1]
        for section in sections
        if (found := re.search(r"```python\n(.*?)```", section, re.DOTALL))
    }


def test_the_examples_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bins = write_bins(tmp_path / "corpus", texts=40)
    monkeypatch.chdir(tmp_path)
    up: dict[str, Any] = {"schedule": {"name": "increasing"}, "batch_size": 8}
    out = fe.order(bins, format="parquet", out=tmp_path / "orders" / "up", **up).out
    fe.order(bins, format="megatron", out=tmp_path / "orders" / "blocks", **up)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "corpus" / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    seen: list[list[int]] = []
    own = DataCollatorForLanguageModeling.torch_call

    def noted(self: Any, rows: list[dict[str, list[int]]]) -> Any:
        seen.extend(list(row["input_ids"]) for row in rows)
        return own(self, rows)

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", noted)
    exec(compile(examples()["The Trainer of transformers"], str(PAGE), "exec"), {"tokenizer": tokenizer})
    rows = [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == pq.read_table(out / "order.parquet")["id"].to_pylist()
    assert seen == [tokenizer(row["text"], truncation=True, max_length=64)["input_ids"] for row in rows]

    names: dict[str, Any] = {}
    exec(compile(examples()["litgpt, and any loop in PyTorch"], str(PAGE), "exec"), names)
    blocks = fe.BlockSet.open(bins)
    wanted = blocks.gather(np.array(list(fe.Sampler(bins, "increasing", batch_size=8))))
    found = torch.cat(list(names["loader"])).numpy()
    assert found.shape == (len(blocks) - 1, LENGTH + 1)
    np.testing.assert_array_equal(found[:, :-1], wanted[:-1, :-1])
    np.testing.assert_array_equal(found[:, -1], wanted[1:, 0])
