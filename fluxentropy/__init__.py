"""Does the uncertainty of a language model tell which text to train on, and when?

    import fluxentropy as fe

    scorer = fe.Scorer.from_pretrained("smollm2-135m-instruct")      # a zoo name, a Hub id, a folder, a .gguf file
    scorer(["To be, or not to be"])[0].entropy_mean                  # nats; scorer.tokens("To be") has every token
    run = fe.score("web.jsonl", model=scorer, out="runs/web")        # every command is a function with a typed result
    bins = fe.Bins.load(fe.bin(run.out, bins=8, out="bins/web").out)
    bins[3].dataset()                                                # a `datasets.Dataset` of one bin

Importing this package loads nothing heavy: each name below is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxentropy.doors import door

if TYPE_CHECKING:
    from fluxentropy.agreement.agree import agree as agree
    from fluxentropy.agreement.agree import zoo as zoo
    from fluxentropy.agreement.statistics import agreement as agreement
    from fluxentropy.cli.demo import demo as demo
    from fluxentropy.entropy import token_stats as token_stats
    from fluxentropy.evaluation.diagnose import diagnose as diagnose
    from fluxentropy.evaluation.hellaswag import hellaswag as hellaswag
    from fluxentropy.experiments.controllers import grpo_compare as grpo_compare
    from fluxentropy.experiments.schedules import compare as compare
    from fluxentropy.experiments.study.study import grpo_study as grpo_study
    from fluxentropy.models.files import models as models
    from fluxentropy.ordering.bin import bin_corpus as bin  # noqa: F401
    from fluxentropy.ordering.bins import Bins as Bins
    from fluxentropy.ordering.sort import sort as sort
    from fluxentropy.pretraining.averages import average as average
    from fluxentropy.pretraining.gpt import GPT as GPT
    from fluxentropy.pretraining.gpt import GPTConfig as GPTConfig
    from fluxentropy.pretraining.pretrain import ledger as ledger
    from fluxentropy.pretraining.pretrain import pretrain as pretrain
    from fluxentropy.report.page import report as report
    from fluxentropy.report.tokens import tokens as tokens
    from fluxentropy.rl.grpo.grpo import grpo as grpo
    from fluxentropy.schedules.dataset import BlockSet as BlockSet
    from fluxentropy.schedules.order import order as order
    from fluxentropy.schedules.sampler import Sampler as Sampler
    from fluxentropy.schedules.show import schedule as schedule
    from fluxentropy.scoring.counts import count as count
    from fluxentropy.scoring.dataset import make_scorer as make_scorer
    from fluxentropy.scoring.dataset import score_dataset as score_dataset
    from fluxentropy.scoring.dataset import score_stream as score_stream
    from fluxentropy.scoring.score import score as score
    from fluxentropy.scoring.scorer import Scorer as Scorer
    from fluxentropy.scoring.scores import Scores as Scores
    from fluxentropy.verification.verify import verify as verify

__version__ = "0.1.0"

__getattr__, __dir__ = door(
    __name__,
    {
        "Bins": "ordering.bins",
        "BlockSet": "schedules.dataset",
        "GPT": "pretraining.gpt",
        "GPTConfig": "pretraining.gpt",
        "Sampler": "schedules.sampler",
        "Scorer": "scoring.scorer",
        "Scores": "scoring.scores",
        "agree": "agreement.agree",
        "average": "pretraining.averages",
        "bin": "ordering.bin:bin_corpus",
        "compare": "experiments.schedules",
        "count": "scoring.counts",
        "demo": "cli.demo",
        "diagnose": "evaluation.diagnose",
        "grpo": "rl.grpo.grpo",
        "grpo_compare": "experiments.controllers",
        "grpo_study": "experiments.study.study",
        "hellaswag": "evaluation.hellaswag",
        "ledger": "pretraining.pretrain",
        "make_scorer": "scoring.dataset",
        "order": "schedules.order",
        "pretrain": "pretraining.pretrain",
        "schedule": "schedules.show",
        "score": "scoring.score",
        "score_dataset": "scoring.dataset",
        "score_stream": "scoring.dataset",
        "sort": "ordering.sort",
        "token_stats": "entropy",
        "tokens": "report.tokens",
        "verify": "verification.verify",
        "zoo": "agreement.agree",
        # rooms; `agreement`, `models` and `report` can also be called
        "agreement": ".",
        "cli": ".",
        "config": ".",
        "corpus": ".",
        "evaluation": ".",
        "experiments": ".",
        "models": ".",
        "ordering": ".",
        "pretraining": ".",
        "report": ".",
        "rl": ".",
        "runs": ".",
        "schedules": ".",
        "scoring": ".",
        "verification": ".",
    },
)
