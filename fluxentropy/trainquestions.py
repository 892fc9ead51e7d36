"""Multiple-choice questions that a model answers while it is trained, by the evaluator of `fluxentropy hellaswag`."""

from __future__ import annotations

import itertools
import time
from typing import Any

import lightning
import torch

from fluxentropy.answering import Reader
from fluxentropy.averaging import averaged
from fluxentropy.blockset import FOLDER
from fluxentropy.gptweights import to_transformers
from fluxentropy.hellaswag import summarise
from fluxentropy.items import make_item, to_table
from fluxentropy.models import Decoder
from fluxentropy.questions import ACCURACIES, open_questions, read_task
from fluxentropy.scorer import choose_path
from fluxentropy.traincallbacks import Averaging, StepCallback
from fluxentropy.trainer import GPTModule, Training


class QuestionRounds(StepCallback):
    """Accuracies and the right ending's log-likelihood per byte: those of ACCURACIES, `answer_loglikelihood` (nats);
    of averaged weights too, where there are any."""

    def __init__(self, training: Training, average: Averaging | None) -> None:
        super().__init__(training)
        self.average = average
        options = training.config.questions
        self.task = read_task(options.task)
        questions = open_questions(options.data, self.task, limit=options.limit)
        self.questions = list(itertools.chain.from_iterable(questions.batches()))
        self.every = options.every or training.budget + 1
        self.tokenizer: Any = None

    def step_end(self, trainer: lightning.Trainer, module: GPTModule, step: int) -> None:
        due = self.plan.crosses(step, self.every) or step + 1 == self.plan.steps
        if due and trainer.is_global_zero:
            started = time.perf_counter()
            module.row |= self.answer(module)
            if self.average is not None:
                with averaged(module.gpt, self.average.average.average()):
                    module.row |= {f"{name}_averaged": value for name, value in self.answer(module).items()}
            module.aside += time.perf_counter() - started

    def answer(self, module: GPTModule) -> dict[str, float]:
        """Answers to all questions, as metrics."""
        reader = self._reader(module)
        prompts = reader.encode(
            [question.context for question in self.questions],
            [question.endings for question in self.questions],
            self.task.delimiter,
        )
        rows = zip(self.questions, prompts, reader.read(prompts), strict=True)
        items = [make_item(*row, vocabulary=reader.vocabulary) for row in rows]
        facts = summarise(to_table(items))
        right = [
            item.logliks[item.label] / item.ending_bytes[item.label]
            for item in items
            if item.logliks is not None and item.label is not None and item.ending_bytes is not None
        ]
        found = {name: facts[name]["value"] for name in ACCURACIES if facts[name]["n"]}
        return found | ({"answer_loglikelihood": sum(right) / len(right)} if right else {})

    def _reader(self, module: GPTModule) -> Reader:
        from transformers import AutoTokenizer

        if self.tokenizer is None:
            self.tokenizer = AutoTokenizer.from_pretrained(self.plan.blocks.path / FOLDER / "tokenizer")
        model: Any = to_transformers(module.gpt)
        model.to(module.device).eval().requires_grad_(False)
        decoder = Decoder(
            name="the model in training",
            model=model,
            tokenizer=self.tokenizer,
            device=module.device,
            dtype=torch.float32,
            fingerprint="",
        )
        path, _ = choose_path(decoder)
        assert path is not None  # without packing there is always the plain path
        return Reader(decoder, path)
