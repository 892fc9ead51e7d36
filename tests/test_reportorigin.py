from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from fluxentropy.cli import main
from fluxentropy.config import AgreeConfig, BinConfig, DiagnoseConfig, HellaswagConfig, PretrainConfig, ScoreConfig
from fluxentropy.reportorigin import command, fingerprints
from fluxentropy.yamlfile import from_plain, to_yaml

OUT = Path("a folder/'x'")
CONFIGS: dict[str, list[Any]] = {
    "score": [
        ScoreConfig(sources=("a.jsonl", "b c.jsonl"), model="m", out=OUT),
        ScoreConfig(sources=("-",), model="$(rm -rf /)", out=OUT, text=False, max_tokens=128, offline=True, limit=3),
        ScoreConfig(sources=("a",), model="m", out=OUT, scores=("mink", "zlib_ratio"), window="sliding", stride=64),
    ],
    "bin": [
        BinConfig(run="runs/web", bins=8, out=OUT),
        BinConfig(run="r", by=("z(a) + z(b)",), quantiles=("10", "50"), out=OUT, tokenize="bytes"),
        BinConfig(run="r", by=("a", "b"), grid="2x3", out=OUT),
    ],
    "agree": [AgreeConfig(inputs=("t.csv",), out=OUT, models=("a", "b"), bootstrap=0)],
    "diagnose": [DiagnoseConfig(table="t", target="Correctly Answered", out=OUT, balance=True, pairs=("a+b",))],
    "hellaswag": [HellaswagConfig(model="m", out=OUT, limit=40)],
    "pretrain": [
        from_plain(
            PretrainConfig,
            {
                "bins": "b",
                "out": "o",
                "schedule": {"name": "periodic", "cycles": 3, "static": True},
                "optim": {"lr": 0.01},
            },
        )
    ],
}


@pytest.mark.parametrize(("name", "config"), [(name, config) for name, given in CONFIGS.items() for config in given])
def test_the_command_gives_the_configuration_back(name: str, config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = command(name, to_yaml(config))
    assert main([*shlex.split(line)[1:], "--print-config"]) == 0
    assert capsys.readouterr().out == to_yaml(config)


@pytest.mark.parametrize("yaml", ["", "- 1", "a: [", "{a: !!python/object:os.system x}", "sources: &a [b]\nlimit: *a"])
def test_what_is_no_configuration_has_the_command_of_its_file(yaml: str) -> None:
    assert command("score", yaml) == "fluxentropy score --config config.resolved.yaml"


def test_fingerprints_are_found_wherever_they_stand() -> None:
    a, b, c = ("sha256:" + digit * 64 for digit in "abc")
    manifest = {"identity": {"model": {"name": "m", "fingerprint": a}}, "inputs": [{"name": "x", "fingerprint": b}]}
    assert list(fingerprints(manifest | {"fingerprint": c, "rows": 3})) == [
        ("model", a),
        ("inputs · x", b),
        ("whole", c),
    ]
