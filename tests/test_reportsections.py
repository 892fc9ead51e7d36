from __future__ import annotations

from pathlib import Path

from fluxentropy.markup import join
from fluxentropy.reportpictures import Pictures
from fluxentropy.reportruns import Run
from fluxentropy.reportsections import Given, bin_section


def test_bins_of_two_scores_have_no_edges_in_a_row() -> None:
    bins = {
        "by": ["a", "b"],
        "how": ["2 bins", "2 bins"],
        "edges": [[0.5], [1.5]],
        "counts": [1, 2, 3, 4],
        "tokens": [5, 6, 7, 8],
        "rows": 10,
    }
    blocks = {"length": 16, "blocks": [1, 2, 3, 4], "tokenizer": {"name": "bytes"}}
    beside = Given(number=0, views=(), shown=(), pictures=Pictures(0))
    page = join(bin_section(Run(kind="bin", path=Path("x"), name="x"), (bins, blocks), beside))
    assert page.count("<tr>") == 5 and "2 bins x 2 bins" in page and "a, b" in page and ">bytes<" in page
    assert "≤" not in page and "Blocks of 16 tokens" in page
