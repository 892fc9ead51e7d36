"""`fluxentropy grpo`: a task with a checker in, a policy trained by GRPO out, with its entropy tracked on the way."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_plain, to_yaml
from fluxentropy.errors import UsageError
from fluxentropy.pretraining.optim import BATCHED
from fluxentropy.pretraining.trainer import as_begun, quiet_lightning
from fluxentropy.rl.grpo.experiment import Experiment, open_controller, task_choice, warm_up
from fluxentropy.rl.grpo.figures import figures
from fluxentropy.rl.grpo.module import (
    Evaluation,
    GRPOModule,
    Rows,
    Speed,
    StateCheckpoints,
    load_state,
    load_states,
    save_state,
)
from fluxentropy.rl.grpo.options import GRPOConfig
from fluxentropy.rl.grpo.policies import export_policy, open_policy
from fluxentropy.rl.grpo.rollouts import stream_seed
from fluxentropy.rl.grpo.tasks import Task, open_task
from fluxentropy.rl.grpo.update import PIECES, check_parts, drop_pieces, gather
from fluxentropy.rl.probe import attribution
from fluxentropy.rl.probe.probe import COVARIANCE
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.files import atomic_path, sha256_file, versions
from fluxentropy.runs.tables import MetricsFile, last_row

COLUMNS = (  # of metrics.csv; what a probe or a controller finds out gets columns when it first comes
    *("step", "reward", "reward_sd", "eval_reward", "eval_solved", "length", "tokens"),
    *("entropy_per_token", "entropy_per_token_se", "entropy_per_sequence", "entropy_per_sequence_se"),
    *("entropy_naive", "entropy_naive_se", "variance_ratio"),
    *("kl", "beta", "clip_fraction", "loss", "grad_norm", "lr", "logp_gap"),
)

TIMINGS = ("step", "seconds", "rollout", "update", "probe", "evaluation", "tokens_per_second")
OWNED = ("metrics.csv", "timings.csv", "responses.parquet", PIECES, attribution.FOLDER, "export*", "figures")

# what changes how a run is done, but not its result
FREE = ("out", "overwrite", "checkpoint_every", "keep", "accelerator", "plots")
RECORDED = ("torch", "transformers", "tokenizers", "pyarrow", "reasoning-gym", "peft")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GRPOResult(Result):
    """A policy trained on a task."""

    out: Path
    task: str
    steps: int
    reward: float  # mean of the last rollout
    eval_reward: float  # mean of the held-out problems, after the last step
    eval_solved: float  # the share of them that is solved
    eval_problems: int
    entropy_per_token: float  # nats
    metrics: Mapping[str, float]  # the last row of metrics.csv

    @property
    def export(self) -> Path:
        """The policy, a folder of `transformers`."""
        return self.out / "export"

    def lines(self) -> list[str]:
        return [
            f"{self.steps:,} steps on {self.task}: reward {self.reward:.3f}; on "
            f"{self.eval_problems:,} held-out problems {self.eval_reward:.3f}, {self.eval_solved:.1%} solved",
            f"entropy {self.entropy_per_token:.4f} nats per token",
            f"metrics in {self.out / 'metrics.csv'}, the policy in {self.export}",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.metrics}


@command
def grpo(config: GRPOConfig, *, own_task: Task | None = None, warm: Path | None = None) -> GRPOResult:
    """Train a policy on a task, going on from the last checkpoint of the same command.

    `own_task`: one in place of the configuration's. `warm`: a file for the policy after the warm-up, which runs
    share that differ in what comes after it alone; the first of them makes it.
    """
    experiment = open_experiment(config, own_task)
    with (
        RunDirectory(config.out, overwrite=config.overwrite, folder="checkpoints", suffix=".ckpt", owned=OWNED) as run,
        as_begun(config.out, config.accelerator) as threads,
    ):
        run.begin({**_identity(experiment), **threads}, to_yaml(config))
        if not run.complete:
            facts = _train(experiment, warm)
            run.finish({**facts, "files": _written(experiment)})
            if config.plots:
                figures(config.out)
        drop_pieces(config.out)  # responses.parquet has all of it
    last = last_row(config.out / "metrics.csv")
    return GRPOResult(
        out=config.out,
        task=experiment.task.name,
        steps=config.steps,
        eval_problems=config.eval_problems,
        **{name: last[name] for name in ("reward", "eval_reward", "eval_solved", "entropy_per_token")},
        metrics=last,
    )


def open_experiment(config: GRPOConfig, task: Task | None = None) -> Experiment:
    """Task, policy and controller. Errors: UsageError, ModelError, SourceError name what cannot be used."""
    opened = task or open_task(task_choice(config))
    policy = open_policy(config.policy, opened, seed=stream_seed(config.seed, "weights"))
    window = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(policy.encode(problem.prompt)) for problem in opened.held_out)
    if window is not None and longest + config.rollout.max_tokens > window:
        raise UsageError(
            f"prompts of {longest} tokens and --rollout.max-tokens {config.rollout.max_tokens} are more than the "
            f"{window} tokens that the policy reads: raise --policy.block-size, or lower --rollout.max-tokens"
        )
    controller = open_controller(config)
    check_parts(config, controller)
    return Experiment(config=config, task=opened, policy=policy, controller=controller)


# --- training ---------------------------------------------------------------------------------------------------------


def _train(experiment: Experiment, warm: Path | None) -> dict[str, Any]:
    config, policy = experiment.config, experiment.policy
    folder = config.out / "checkpoints"
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    policy.model.to("cuda" if gpu else "cpu")
    module = GRPOModule(experiment)
    states = load_states(folder)
    if states is None:
        save_state(_warmed(experiment, warm), folder)
        states = load_states(folder)
        assert states is not None
    first, latest = states
    experiment.start_step = latest["step"]
    policy.load(latest["weights"])
    if config.kl.beta:
        experiment.reference = {n: tensor.to(policy.trainable()[n].device) for n, tensor in first["weights"].items()}
    if experiment.start_step:
        log.info(f"resuming after step {experiment.start_step:,} of {config.steps:,}")
    if experiment.start_step < config.steps:
        _fit(module, latest)
    shutil.rmtree(config.out / "export", ignore_errors=True)  # of a run that was killed before it was complete
    gather(config.out)
    export_policy(policy, config.out / "export")
    return {
        "steps": config.steps,
        "warmup_loss": first["warmup_loss"],
        "parameters": policy.model.num_parameters(),
        "trained_parameters": sum(p.numel() for p in policy.trainable().values()),
        "versions": versions(RECORDED),
    }


def _warmed(experiment: Experiment, warm: Path | None) -> dict[str, Any]:
    """The state of after the warm-up."""
    if warm is not None and warm.is_file():
        return load_state(warm)
    config, policy = experiment.config, experiment.policy
    loss = warm_up(policy, experiment.task, config.warmup, seed=config.seed)
    weights = {name: p.detach().cpu().clone() for name, p in policy.trainable().items()}
    begin = {"step": 0, "weights": weights, "warmup_loss": loss}
    if warm is not None:
        with atomic_path(warm) as aside:
            torch.save(begin, aside)
    return begin


def _fit(module: GRPOModule, state: dict[str, Any]) -> None:
    experiment, config = module.experiment, module.experiment.config
    callbacks = [
        Restoring(state),
        Evaluation(experiment),
        Rows(experiment, MetricsFile(config.out / "metrics.csv", COLUMNS)),
        Speed(experiment, MetricsFile(config.out / "timings.csv", TIMINGS)),
        StateCheckpoints(experiment, config.out / "checkpoints"),
    ]
    steps: Any = range(experiment.start_step, config.steps)
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            max_epochs=1,
            logger=False,
            callbacks=callbacks,
            default_root_dir=config.out,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, DataLoader(steps, batch_size=None))
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from error


class Restoring(lightning.Callback):
    """Puts the optimizer, beta and the controller back to a checkpoint's, before anything else."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        if self.state["step"]:
            pl_module.load_state(self.state)


# --- what a run is ----------------------------------------------------------------------------------------------------


def _identity(experiment: Experiment) -> dict[str, Any]:
    """Everything that decides the result, and what `probe_covariance_per_lr` is of."""
    plain = {name: value for name, value in to_plain(experiment.config).items() if name not in FREE}
    fingerprints = {"problems": experiment.task.fingerprint, "initial_policy": experiment.policy.fingerprint}
    covariance = {"covariance": COVARIANCE} if "kernel" in (experiment.config.probe.parts or ()) else {}
    kinds = (experiment.config.optim.kind, experiment.config.warmup.kind)
    muon = {"muon": BATCHED} if "muon" in kinds else {}
    return {"kind": "grpo", **plain, **fingerprints, **covariance, **muon}


def _written(experiment: Experiment) -> dict[str, str]:
    """The SHA-256 of each file that a finished run holds for good."""
    out = experiment.config.out
    files = [out / "metrics.csv", out / "responses.parquet"]
    files += [path for folder in (attribution.FOLDER, "export*") for path in sorted(out.glob(f"{folder}/*"))]
    return {str(path.relative_to(out)): sha256_file(path) for path in files}
