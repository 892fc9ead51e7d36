"""lm-evaluation-harness as an oracle, in a process of its own: its requests and log-likelihoods for HellaSwag records.

python tests/harness.py RECORDS.jsonl OUT.json      records as in the Hub's data set, the real model of the offline zoo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.hellaswag import utils

from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import find_model

MODEL = "smollm2-135m-instruct"


def main(records: str, out: str) -> None:
    """Write {document: [log-likelihood of each ending]}."""
    decoder = load_decoder(find_model(MODEL), device="cpu", dtype="fp32", offline=True)
    model = HFLM(pretrained=decoder.model, tokenizer=decoder.tokenizer, batch_size=16, device="cpu")
    task = ConfigurableTask(
        config={
            "task": "hellaswag_records",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": records}},
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "process_docs": utils.process_docs,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
        }
    )
    task.build_all_requests()
    found: dict[int, dict[int, float]] = {}
    for request, (loglik, _) in zip(task.instances, model.loglikelihood(task.instances), strict=True):
        found.setdefault(request.doc_id, {})[request.idx] = loglik
    logliks = [[row[ending] for ending in sorted(row)] for _, row in sorted(found.items())]
    Path(out).write_text(json.dumps(logliks))


if __name__ == "__main__":
    main(*sys.argv[1:])
