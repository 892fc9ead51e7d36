"""The tokens of a GRPO run: their parts sum to that of the batch in AdamW's step, and belong to the run's responses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from digits import Digits, Steering, config, steer
from runfiles import metrics

from fluxentropy.errors import UsageError
from fluxentropy.rl.control.published import Bonus
from fluxentropy.rl.grpo import module as grpocallbacks
from fluxentropy.rl.grpo.grpo import grpo
from fluxentropy.rl.grpo.options import GRPOOptim, LossOptions, ProbeOptions, RolloutOptions
from fluxentropy.rl.grpo.update import attributes
from fluxentropy.rl.probe.attribution import Attribution, write_attribution
from fluxentropy.rl.probe.kernel import known_step
from fluxentropy.rl.probe.probe import EntropyProbe

LOSSES = [
    LossOptions(average="tokens"),
    LossOptions(average="responses", ratio="sequence"),
    LossOptions(average="constant", advantages="leave_one_out"),
]

pytestmark = pytest.mark.usefixtures("one_thread")


def probe(every: int = 1, **options: Any) -> ProbeOptions:
    """A probe that attributes and does little else."""
    settings: dict[str, Any] = {"parts": ("split",), "attribution": True} | options
    return ProbeOptions(every=every, prompts=4, responses=2, **settings)


def rows(out: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv after the first."""
    return metrics(out)[1:]


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("attribution/*")}


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.average)
def test_the_tokens_sum_to_the_batchs_part_of_the_step(
    loss: LossOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the gradients that the optimizer saw, by the same estimate of the entropy's gradient."""
    own, batch_parts = EntropyProbe.attribute, []

    def attribute(self: EntropyProbe, *, clip: float = 1.0) -> Attribution:
        assert clip < 0.9 and self._recorder is not None
        part = self._recorder.split().batch
        batch_parts.append(known_step(self._policy, self._batch, part, params=self._before).value)
        return own(self, clip=clip)

    monkeypatch.setattr(EntropyProbe, "attribute", attribute)
    grpo(config(tmp_path / "run", steps=2, probe=probe(), loss=loss, clip=0.003, micro_batch=5), own_task=Digits())
    found = rows(tmp_path / "run")
    assert [row["probe_attribution_total"] for row in found] == pytest.approx(batch_parts, rel=1e-4)
    assert all(abs(row["probe_momentum_per_sequence"]) > 1e-7 for row in found[1:])  # and none of it is in the sum
    for step, row in enumerate(found, 1):
        table = pq.read_table(tmp_path / "run" / "attribution" / f"step_{step:06d}.parquet").to_pandas()
        assert table.change.sum() == pytest.approx(row["probe_attribution_total"], rel=1e-9)
        quadrant = table.change[(table.advantage < 0) & (table.logp < -table.entropy)].sum()
        assert quadrant == pytest.approx(row["probe_attribution_negative_rare"], rel=1e-9)
        assert row["probe_attribution_negative_rare_se"] > 0 and -1 <= row["probe_attribution_correlation"] <= 1


def test_responses_of_one_token_agree_with_the_split_of_the_metrics(tmp_path: Path) -> None:
    """No token follows another there, so that all estimates of the entropy's gradient are one.

    The logits of tokens that no response has get gradients that cancel within a group. What is left of them is
    rounding, which AdamW makes as large as all else unless epsilon is larger.
    """
    rollout, optim = RolloutOptions(prompts=4, responses=3, max_tokens=1), GRPOOptim(eps=1e-4)
    grpo(config(tmp_path / "run", steps=2, probe=probe(), rollout=rollout, optim=optim), own_task=Digits())
    for row in rows(tmp_path / "run"):
        assert row["probe_attribution_total"] == pytest.approx(row["probe_batch_per_sequence"], rel=1e-4)


# --- files ------------------------------------------------------------------------------------------------------------


def test_tokens_join_the_responses_of_the_run(tmp_path: Path) -> None:
    """By step, prompt and response, of the same types: which responses moved the entropy, and were they right?"""
    loss = LossOptions(average="responses")
    grpo(config(tmp_path / "run", steps=2, probe=probe(), loss=loss), own_task=Digits())
    responses = pq.read_table(tmp_path / "run" / "responses.parquet")
    tokens = pq.read_table(tmp_path / "run" / "attribution")
    keys = ["step", "prompt", "response"]
    sums = tokens.group_by(keys).aggregate([("change", "sum"), ("logp", "sum"), ("entropy", "sum"), ("token", "count")])
    assert sums.num_rows == responses.num_rows == 24
    joined = sums.join(responses, keys, join_type="inner", left_suffix="_of_tokens").to_pandas()
    assert len(joined) == 24
    np.testing.assert_array_equal(joined.token_count, joined.length)
    np.testing.assert_allclose(joined.logp_sum, joined.logp, rtol=1e-5)
    np.testing.assert_allclose(joined.entropy_sum, joined.entropy, rtol=1e-5)
    own = (
        tokens.group_by(keys).aggregate([("advantage", "min"), ("advantage", "max")]).join(responses, keys).to_pandas()
    )
    np.testing.assert_allclose(own.advantage_min, own.advantage, rtol=1e-6)
    np.testing.assert_allclose(own.advantage_max, own.advantage, rtol=1e-6)
    by_step = joined.groupby("step").change_sum.sum()
    assert list(by_step) == pytest.approx([row["probe_attribution_total"] for row in rows(tmp_path / "run")])


def test_stopped_while_it_writes_a_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"steps": 2, "probe": probe(), "checkpoint_every": 2, "inner_epochs": 2}
    grpo(config(tmp_path / "whole", **options), own_task=Digits())

    class StoppedError(Exception):
        pass

    for step, written in ((1, False), (2, True)):  # the checkpoint is behind the file, or even with it

        def stop(path: Path, found: Attribution, *, step: int, at: int = step, written: bool = written) -> None:
            if step != at or written:
                write_attribution(path, found, step=step)
            if step == at:
                path.parent.mkdir(exist_ok=True)
                path.with_name(f".aside-{path.name}").write_bytes(b"what a killed process leaves")
                raise StoppedError

        with monkeypatch.context() as patch:
            patch.setattr(grpocallbacks, "write_attribution", stop)
            with pytest.raises(StoppedError):
                grpo(config(tmp_path / "stopped", **options), own_task=Digits())
    grpo(config(tmp_path / "stopped", **options), own_task=Digits())
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole")
    manifest = json.loads((tmp_path / "stopped" / "manifest.json").read_text())
    sums = {
        f"attribution/{name}": hashlib.sha256(data).hexdigest() for name, data in tables(tmp_path / "whole").items()
    }
    assert len(sums) == 2 and sums.items() <= manifest["files"].items()
    grpo(config(tmp_path / "stopped", steps=1, overwrite=True), own_task=Digits())
    assert not (tmp_path / "stopped" / "attribution").exists()


# --- when -------------------------------------------------------------------------------------------------------------


OPEN = probe(parts=None, attribution=None)  # nothing but how often


@pytest.mark.parametrize(
    ("settings", "controller", "expected"),
    [
        ({"probe": OPEN}, None, True),
        ({"probe": probe(parts=None, attribution=False)}, None, False),
        ({"probe": probe(attribution=None)}, None, False),
        ({"probe": probe(parts=None, attribution=None, budget=10)}, None, False),
        ({"probe": probe(parts=None, budget=3)}, None, True),
        ({"probe": OPEN, "optim": GRPOOptim(kind="muon")}, None, False),
        ({"probe": OPEN, "rollout": RolloutOptions(prompts=1)}, None, False),
        ({"probe": OPEN}, Bonus(), False),
    ],
)
def test_it_is_done_where_it_can_be_and_nothing_limits_the_probe(
    settings: dict[str, Any], controller: Bonus | None, expected: bool
) -> None:
    assert attributes(config(Path("run"), **settings), controller) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, [2]), ({"controller": {"name": "bonus"}}, []), ({"optim": GRPOOptim(kind="muon")}, [])],
)
def test_other_steps_have_no_table_and_no_numbers(options: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    settings = probe(every=2, parts=None, attribution=None)
    grpo(config(tmp_path / "run", steps=2, probe=settings, inner_epochs=2, **options), own_task=Digits())
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found if "probe_attribution_total" in row] == expected
    assert [row["step"] for row in found if "probe_first_per_sequence" in row] == [2]
    assert list(tables(tmp_path / "run")) == [f"step_{step:06d}.parquet" for step in expected]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optim": GRPOOptim(kind="muon")}, "--probe.attribution with --optim.kind muon: only steps of AdamW"),
        ({"controller": {"name": "bonus"}}, "--probe.attribution with the controller bonus: it changes the update"),
        ({"controller": {"name": "steering"}}, "--probe.attribution with the controller steering"),
        ({"rollout": RolloutOptions(prompts=1, max_tokens=3)}, "--probe.attribution with --rollout.prompts 1"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("controller") == {"name": "steering"}:
        steer(monkeypatch, Steering())
    with pytest.raises(UsageError, match=said):
        grpo(config(tmp_path / "run", probe=probe(parts=None), **options), own_task=Digits())


def test_it_needs_probed_steps() -> None:
    with pytest.raises(UsageError, match=r"--probe\.attribution without --probe\.every"):
        ProbeOptions(attribution=True)
