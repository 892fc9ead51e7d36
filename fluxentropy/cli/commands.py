"""The table of commands: name, function, options, help. Functions are imported when their command runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fluxentropy.config.checks import Min, Options
from fluxentropy.config.options import INPUT, MODEL, OUTPUT, SWITCH


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Options):
    """Options of `fluxentropy demo`."""

    out: Annotated[Path, OUTPUT] = Path("demo")
    """Folder to write."""
    model: Annotated[str, MODEL] = "smollm2-135m-instruct"
    """Name from the zoo, Hub id, local folder, or .gguf file."""
    passages: Annotated[int, INPUT, Min(1)] = 200
    """Number of passages to score."""
    overwrite: Annotated[bool, SWITCH, OUTPUT] = False
    """Start afresh, even where --out holds a demo."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its name, where its function is, what configures it, and its help."""

    name: str
    target: str
    """module:function"""
    options: str | type
    """The dataclass that configures it, or its module:name"""
    help: str
    examples: str
    file: str | None = None
    """Whose options its --config file holds, where that is another command: those that both have count."""

    @property
    def config(self) -> type:
        return named(self.options) if isinstance(self.options, str) else self.options


def named(target: str) -> Any:
    """What "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS = (
    Command(
        name="demo",
        target="fluxentropy.cli.demo:demo",
        options="fluxentropy.cli.commands:DemoConfig",
        help="Run the whole pipeline on text that every Python installation carries.",
        examples="""\
fluxentropy demo
fluxentropy demo --out demo-small --passages 50""",
    ),
    Command(
        name="score",
        target="fluxentropy.scoring.score:score",
        options="fluxentropy.scoring.options:ScoreConfig",
        help="Score texts with a language model: entropy, varentropy and surprisal of each text, as Parquet.",
        examples="""\
fluxentropy score web.jsonl --model smollm2-135m-instruct --out runs/web
fluxentropy score web.jsonl --model gpt2 --scores minkpp,entropy_slope,zlib_ratio --out runs/more
fluxentropy score web.jsonl --model none --scores mtld,flesch,word_frequency --out runs/plain
fluxentropy score data/*.parquet --model gpt2 --window sliding --out runs/long
zcat web.jsonl.gz | fluxentropy score - --model ./my-model --out runs/piped""",
    ),
    Command(
        name="count",
        target="fluxentropy.scoring.counts:count",
        options="fluxentropy.scoring.options:CountConfig",
        help="Count how often each token of a model occurs in a corpus, for the scores that ask for it.",
        examples="""\
fluxentropy count web.jsonl --model smollm2-135m-instruct --out counts.parquet
fluxentropy score web.jsonl --model smollm2-135m-instruct --scores all --token-counts counts.parquet --out runs/web""",
    ),
    Command(
        name="tokens",
        target="fluxentropy.report.tokens:tokens",
        options="fluxentropy.report:TokensConfig",
        help="Show a few texts token by token: a heatmap as HTML, and the numbers as CSV.",
        examples="""\
fluxentropy tokens web.jsonl --model smollm2-135m-instruct --out tokens.html
fluxentropy tokens notes.txt --model gpt2 --limit 2 --top-k 10 --out n.html""",
    ),
    Command(
        name="sort",
        target="fluxentropy.ordering.sort:sort",
        options="fluxentropy.ordering.options:SortConfig",
        help="Sort a scored corpus of any size by one of its scores.",
        examples="""\
fluxentropy sort runs/web --out sorted.parquet
fluxentropy sort runs/web --by surprisal_mean --descending --out hard.jsonl
fluxentropy sort runs/web --by "entropy_mean - 0.5*varentropy_mean" --out mixed.parquet""",
    ),
    Command(
        name="bin",
        target="fluxentropy.ordering.bin:bin_corpus",
        options="fluxentropy.ordering.options:BinConfig",
        help="Cut a scored corpus into bins of Arrow shards, at exact edges.",
        examples="""\
fluxentropy bin runs/web --by entropy_mean --bins 8 --out bins/web
fluxentropy bin runs/web --quantiles 10,25,50,75,90 --workers 4 --out bins/q
fluxentropy bin runs/web --by entropy_mean,varentropy_mean --grid 4x4 --out b
fluxentropy bin runs/web --bins 8 --within source --tokenize bytes --out bins/s
fluxentropy bin fineweb-edu.parquet --by score --bins 4 --out bins/edu
fluxentropy bin runs/small --by learnability --scores runs/large --bins 8 --out l""",
    ),
    Command(
        name="schedule",
        target="fluxentropy.schedules.show:schedule",
        options="fluxentropy.schedules.options:PlanConfig",
        help="Show what a schedule will draw from each bin, before any training.",
        examples="""\
fluxentropy schedule --bins bins/web --schedule.name increasing
fluxentropy schedule --config configs/pretrain/debug.yaml --bins bins/web --out plans/debug
fluxentropy schedule --bins bins/web --schedule.name pool --tokens 100000000""",
        file="fluxentropy.pretraining.options:PretrainConfig",
    ),
    Command(
        name="order",
        target="fluxentropy.schedules.order:order",
        options="fluxentropy.schedules.options:OrderConfig",
        help="Write a schedule as a data set, in order, for another trainer to read in sequence.",
        examples="""\
fluxentropy order bins/web --schedule.name increasing --format parquet --out orders/up
fluxentropy order bins/web --schedule.name pool --tokens 100000000 --format mds --out orders/pool
fluxentropy order bins/web --schedule.name folded --batch-size 512 --format nanogpt-bin --out orders/folded""",
        file="fluxentropy.pretraining.options:PretrainConfig",
    ),
    Command(
        name="pretrain",
        target="fluxentropy.pretraining.pretrain:pretrain",
        options="fluxentropy.pretraining.options:PretrainConfig",
        help="Train a GPT on a binned corpus under a schedule, resumable to the exact step.",
        examples="""\
fluxentropy pretrain --config configs/pretrain/debug.yaml --bins bins/web --out runs/debug
fluxentropy pretrain --config configs/pretrain/debug.yaml --bins bins/web --schedule.name increasing --out runs/up
fluxentropy pretrain --config runs/up/config.resolved.yaml --from runs/up@60 --branch --lr.decay 0.2 --out runs/b
fluxentropy pretrain --config configs/pretrain/124m.yaml --bins bins/web --devices 8 --out runs/124m""",
    ),
    Command(
        name="average",
        target="fluxentropy.pretraining.averages:average",
        options="fluxentropy.pretraining.options:AverageConfig",
        help="Average checkpoints of a training into one model.",
        examples="""\
fluxentropy average runs/debug --last 2 --out runs/debug-mean
fluxentropy average runs/debug --ema 0.9 --out runs/debug-ema
fluxentropy average runs/debug --weights 0.2,0.3,0.5 --steps 60,80,100 --out runs/debug-weighted""",
    ),
    Command(
        name="compare",
        target="fluxentropy.experiments.schedules:compare",
        options="fluxentropy.experiments.options:CompareConfig",
        help="Compare schedules: several trainings of each, with controls, and what their differences say.",
        examples="""\
fluxentropy compare --config configs/compare/small.yaml --bins bins/web --out comparisons/small
fluxentropy compare --config configs/compare/debug.yaml --bins bins/web --workers 2 --out comparisons/debug
fluxentropy compare --config configs/compare/small.yaml --bins bins/web --seeds 8 --out comparisons/small""",
    ),
    Command(
        name="grpo",
        target="fluxentropy.rl.grpo.grpo:grpo",
        options="fluxentropy.rl.grpo.options:GRPOConfig",
        help="Train a policy on a task with a checker by GRPO, tracking its entropy.",
        examples="""\
fluxentropy grpo --config configs/grpo/chain_sum.yaml --out runs/sums
fluxentropy grpo --config configs/grpo/chain_sum.yaml --kl.beta 0.01 --inner-epochs 2 --out runs/sums-kl
fluxentropy grpo --task.name gsm8k --task.data data/gsm8k --policy.model gpt2 --policy.lora.rank 8 --out runs/gsm""",
    ),
    Command(
        name="grpo-compare",
        target="fluxentropy.experiments.controllers:grpo_compare",
        options="fluxentropy.experiments.options:GRPOCompareConfig",
        help="Compare controllers of the entropy: several runs of grpo of each, and what their differences say.",
        examples="""\
fluxentropy grpo-compare --config configs/grpo/controllers.yaml --workers 2 --out comparisons/controllers
fluxentropy grpo-compare --config configs/grpo/controllers.yaml --seeds 5 --out comparisons/controllers""",
    ),
    Command(
        name="grpo-study",
        target="fluxentropy.experiments.study.study:grpo_study",
        options="fluxentropy.experiments.options:GRPOStudyConfig",
        help="Say from probed runs of grpo what moves the entropy, and how well it is predicted.",
        examples="""\
fluxentropy grpo-study runs/sums --out studies/sums
fluxentropy grpo-study runs/lr-1e-4 runs/lr-1e-3 --tolerance 0.2 --out studies/rates
fluxentropy grpo-study comparisons/controllers --unit token --out studies/controllers""",
    ),
    Command(
        name="ledger",
        target="fluxentropy.pretraining.pretrain:ledger",
        options="fluxentropy.pretraining.options:LedgerConfig",
        help="Say how often and when a training has seen each document.",
        examples="""\
fluxentropy ledger runs/debug
fluxentropy ledger runs/debug --out seen.parquet""",
    ),
    Command(
        name="verify",
        target="fluxentropy.verification.verify:verify",
        options="fluxentropy.verification:VerifyConfig",
        help="Prove that a run has lost no row and no byte; name what is damaged.",
        examples="""\
fluxentropy verify bins/web
fluxentropy verify runs/web --workers 4 --json
fluxentropy verify bins/web --repair""",
    ),
    Command(
        name="zoo",
        target="fluxentropy.agreement.agree:zoo",
        options="fluxentropy.agreement:ZooConfig",
        help="Score texts with every model of a zoo, then compare them.",
        examples="""\
fluxentropy zoo web.jsonl --zoo offline --out zoo/web
fluxentropy zoo data/*.parquet --zoo my-models.yaml --limit 10000 --out zoo/sample""",
    ),
    Command(
        name="agree",
        target="fluxentropy.agreement.agree:agree",
        options="fluxentropy.agreement:AgreeConfig",
        help="Say how far models agree on texts: rank correlations, distances, PCA.",
        examples="""\
fluxentropy agree runs/small runs/large --out agreement
fluxentropy agree zoo/web --by surprisal_mean --baseline gpt2 --out agreement
fluxentropy agree table.csv --out agreement""",
    ),
    Command(
        name="hellaswag",
        target="fluxentropy.evaluation.hellaswag:hellaswag",
        options="fluxentropy.evaluation:HellaswagConfig",
        help="Answer HellaSwag, or another multiple-choice set, and score each context.",
        examples="""\
fluxentropy hellaswag --model smollm2-135m-instruct --out runs/hellaswag
fluxentropy hellaswag --model gpt2 --data val.jsonl.gz --limit 300 --out runs/h
fluxentropy hellaswag --model gpt2 --task piqa --out runs/piqa""",
    ),
    Command(
        name="diagnose",
        target="fluxentropy.evaluation.diagnose:diagnose",
        options="fluxentropy.evaluation:DiagnoseConfig",
        help="Say whether metrics predict a yes-or-no outcome: logistic regressions, tests, plots.",
        examples="""\
fluxentropy diagnose items.parquet --target correct --out diagnosis
fluxentropy diagnose answers.csv --target correct --metrics entropy,varentropy,sqrt_varentropy --out diagnosis
fluxentropy diagnose answers.csv --target correct --balance --seed 1 --out balanced""",
    ),
    Command(
        name="report",
        target="fluxentropy.report.page:report",
        options="fluxentropy.report:ReportConfig",
        help="Put what the other commands wrote on one HTML page, to read, send or print.",
        examples="""\
fluxentropy report demo
fluxentropy report runs/web bins/web comparison --out web.html --title Web""",
    ),
    Command(
        name="models",
        target="fluxentropy.models.files:models",
        options="fluxentropy.models:ModelsConfig",
        help="List the models of the zoo: source, size, licence, what is here.",
        examples="""\
fluxentropy models
fluxentropy models --zoo my-models.yaml --json""",
    ),
)

DESCRIPTION = """\
fluxentropy measures how uncertain language models are about each text of a corpus (entropy, varentropy, surprisal), \
sorts the corpus by it, and compares the models."""

EXAMPLES = """\
Examples:
  # everything once, on a small text
  fluxentropy demo
  # score a corpus; the same command again resumes a run that was stopped
  fluxentropy score web.jsonl --model smollm2-135m-instruct --out runs/web
  # the corpus in the order of a score, lowest first
  fluxentropy sort runs/web --by entropy_mean --out sorted.parquet
  # how often tokens occur; more scores from the same pass; an order that mixes
  fluxentropy count web.jsonl --model gpt2 --out counts.parquet
  fluxentropy score web.jsonl --model gpt2 --scores minkpp --out runs/more
  fluxentropy sort runs/more --by "z(minkpp) + z(entropy_mean)" --out m.parquet
  # the same with several models: how far do they agree?
  fluxentropy models
  fluxentropy zoo web.jsonl --zoo offline --out zoo/web
  fluxentropy agree zoo/web --by surprisal_mean --out agreement
  # do entropy and varentropy predict which answers are right?
  fluxentropy hellaswag --model smollm2-135m-instruct --out runs/hellaswag
  fluxentropy diagnose runs/hellaswag --target correct_norm --out diagnosis
  # eight bins of equal counts, as Arrow shards to train on
  fluxentropy bin runs/web --by entropy_mean --bins 8 --out bins/web
  # what a schedule will draw from each bin, before any training
  fluxentropy schedule --bins bins/web --schedule.name periodic
  # as blocks of tokens; what a schedule will draw; a small GPT; what it saw
  fluxentropy bin runs/web --bins 8 --tokenize bytes --out bins/web
  fluxentropy schedule --bins bins/web --schedule.name increasing
  fluxentropy pretrain --config small.yaml --bins bins/web --out runs/small
  fluxentropy ledger runs/small
  # the mean of its last checkpoints
  fluxentropy average runs/small --last 2 --out runs/small-mean
  # the same order for another trainer, in its own format
  fluxentropy order bins/web --schedule.name increasing --format mds --out up
  # which schedule is better? with controls and honest statistics
  fluxentropy compare --config compare.yaml --bins bins/web --out comparison
  # reinforcement learning on sums, with the entropy of the policy
  fluxentropy grpo --config configs/grpo/chain_sum.yaml --out runs/sums
  # which controller of the entropy is better?
  fluxentropy grpo-compare --config controllers.yaml --out compared
  # what moves the entropy, and how well is it predicted? from probed runs
  fluxentropy grpo-study runs/sums --out studies/sums
  # nothing lost, nothing damaged? --repair makes again what is
  fluxentropy verify bins/web --repair
  # look at single tokens
  fluxentropy tokens web.jsonl --model smollm2-135m-instruct --out tokens.html
  # all of it on one page
  fluxentropy report runs/web bins/web comparison --out report.html
  # write the options to a file, and run from it; flags win over the file
  fluxentropy score web.jsonl --model gpt2 --out runs/b --print-config > b.yaml
  fluxentropy score --config b.yaml --limit 100

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted."""
