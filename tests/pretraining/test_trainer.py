"""A training goes on with the number of threads with which it was begun, to the same bits, whatever torch has now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from digits import Digits, config
from tokenruns import write_bins

from fluxentropy.cli.app import main
from fluxentropy.pretraining import trainer as threads
from fluxentropy.pretraining.callbacks import Checkpoints
from fluxentropy.pretraining.trainer import GPTModule
from fluxentropy.rl.grpo.grpo import grpo
from fluxentropy.rl.grpo.module import GRPOModule, StateCheckpoints
from fluxentropy.runs.files import read_json, write_json
from tests.experiments import test_controllers as test_grpo_compare
from tests.experiments import test_schedules as test_compare
from tests.pretraining.test_pretrain import StoppedError, command, result, stop_after

pytestmark = pytest.mark.usefixtures("one_thread")
GPT2 = ("--model.preset", "gpt2", "--optim.kind", "adamw")  # with LayerNorm


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"))


@contextmanager
def torch_has(number: int) -> Iterator[None]:
    """As many threads as torch would take by itself on another machine, or as the user says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(number))
        torch.set_num_threads(number)
        yield
    assert torch.get_num_threads() == number  # it is given back
    torch.set_num_threads(1)


def identity(out: Path) -> dict[str, Any]:
    return (read_json(out / "manifest.json") or {})["identity"]


def test_layer_norm_sums_its_gradient_by_thread() -> None:
    """Why there is something to note. If this fails, torch has changed."""

    def gradient(number: int) -> torch.Tensor:
        torch.set_num_threads(number)
        norm, x = torch.nn.LayerNorm(16), torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
        (norm(x) * x).sum().backward()
        torch.set_num_threads(1)
        assert norm.weight.grad is not None
        return norm.weight.grad

    assert not torch.equal(gradient(1), gradient(2))


@pytest.fixture(scope="module")
def whole(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(bins, out, *GPT2)) == 0
    return out


def stopped(bins: Path, out: Path) -> list[str]:
    """A run that was begun with one thread and stopped after step 6; its command."""
    argv = command(bins, out, *GPT2)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6, Checkpoints)
        assert main(argv) == 1
    return argv


def test_a_training_goes_on_with_its_threads(
    bins: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = stopped(bins, tmp_path / "run")
    with torch_has(2):
        assert main(argv) == 0
    assert "with 1 threads a run, as" in capsys.readouterr().err
    assert result(tmp_path / "run") == result(whole)
    assert identity(whole)["threads"] == 1
    with torch_has(2):
        assert main(command(bins, tmp_path / "other", *GPT2)) == 0
        assert main(command(bins, tmp_path / "other", *GPT2)) == 0  # a finished one is left alone
    assert identity(tmp_path / "other")["threads"] == 2
    names = ("metrics.csv", "export/model.safetensors")
    assert [result(tmp_path / "other")[name] == result(whole)[name] for name in names] == [False, False]


def test_a_machine_with_fewer_cores_is_told_how_to_go_on(
    bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    out = tmp_path / "run"
    argv = command(bins, out, *GPT2)
    with torch_has(2), pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6, Checkpoints)
        assert main(argv) == 1
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert f"{out} was begun with 2 threads, and this machine has 1 cores: go on where there are as many; or" in said
    assert "OMP_NUM_THREADS=2; or start afresh with --overwrite" in said
    with torch_has(2):
        assert main(argv) == 0
    assert identity(out)["threads"] == 2


def test_a_run_of_an_earlier_version_goes_on_as_it_did(
    bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = stopped(bins, out)
    manifest = read_json(out / "manifest.json") or {}
    del manifest["identity"]["threads"]
    write_json(out / "manifest.json", manifest)
    (out / ".records.json").unlink()
    assert main(argv) == 0
    assert "did not note its number of threads" in capsys.readouterr().err
    assert "threads" not in identity(out)
    assert main(argv) == 0


def test_all_cells_of_a_comparison_have_its_threads(
    bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are trained later, by another number of workers or on another machine."""
    had: list[int] = []
    own = GPTModule.training_step
    monkeypatch.setattr(GPTModule, "training_step", lambda *given: had.append(torch.get_num_threads()) or own(*given))
    argv = test_compare.command(tmp_path, bins, controls=[], seeds=1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5, Checkpoints)
        assert main(argv) == 1
    with torch_has(2):
        assert main([*argv, "--seeds", "2"]) == 0
    assert set(had) == {1}
    assert identity(tmp_path / "out")["threads"] == 1
    assert {identity(path.parent)["threads"] for path in tmp_path.glob("out/cells/*/*/manifest.json")} == {1}


def test_a_policy_goes_on_with_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    had: list[int] = []
    own = GRPOModule.training_step

    def training_step(self: Any, batch: Any) -> Any:
        had.append(torch.get_num_threads())
        return own(self, batch)

    monkeypatch.setattr(GRPOModule, "training_step", training_step)
    with pytest.MonkeyPatch.context() as patch:
        own_end = StateCheckpoints.step_end

        def step_end(self: Any, *given: Any) -> None:
            if len(had) == 2:
                raise StoppedError
            own_end(self, *given)

        patch.setattr(StateCheckpoints, "step_end", step_end)
        with pytest.raises(StoppedError):
            grpo(config(tmp_path / "run"), own_task=Digits())
    with torch_has(2):
        grpo(config(tmp_path / "run"), own_task=Digits())
    assert len(had) > 3 and set(had) == {1}
    assert identity(tmp_path / "run")["threads"] == 1


def test_all_policies_of_a_comparison_have_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxentropy.experiments.figures.draw_comparison", lambda *_: [])
    argv = test_grpo_compare.command(tmp_path, arms={"bonus": test_grpo_compare.ARMS["bonus"]}, seeds=1)
    assert main(argv) == 0
    with torch_has(2):
        assert main([*argv, "--seeds", "2"]) == 0
    assert identity(tmp_path / "out")["threads"] == 1
    assert [identity(p.parent)["threads"] for p in tmp_path.glob("out/cells/*/*/manifest.json")] == [1] * 4
