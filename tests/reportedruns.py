"""Small runs of every command, written without a model, with hostile text wherever a user or a corpus can put some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from scoredruns import write_run

from fluxentropy.evaluation.hellaswag import Item, to_table
from fluxentropy.pretraining.ledger import SCHEMA, Ledger
from fluxentropy.report.tokens import TokenRow, TokenView, write_csv
from fluxentropy.runs.directory import RunDirectory

EVIL = (
    "<script>document.title='owned'</script>",
    "</style></title><script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "'--><svg onload=alert(1)>&lt;b&gt;&amp;",
    "\u202eright to left\u2066 ]]> {{7*7}}",
)
KINDS = ("score", "agree", "tokens", "bin", "schedule", "pretrain", "compare", "hellaswag", "diagnose", "grpo")


def finished(folder: Path, identity: dict[str, object], config: str = "", **facts: object) -> Path:
    """A finished run directory without parts."""
    with RunDirectory(folder) as run:
        run.begin(identity, config)
        run.finish({"versions": {"fluxentropy": "0.1.0", "torch": EVIL[0]}, **facts})
    return folder


def write_all(root: Path) -> dict[str, Path]:
    """A run of each of KINDS in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    ids = [*EVIL, "plain", "empty"]
    scores = [3.0, 1.0, 2.5, 0.5, 4.0, 2.0, None]
    runs = {"score": write_run(root / "score", scores, ids=ids, model=EVIL[1], sources={EVIL[2]: "sha256:" + 64 * "0"})}
    runs["tokens"] = write_tokens(root / "tokens.csv")
    runs["agree"] = finished(root / "agree", {"models": [], "inputs": []}, models=list(EVIL[:2]))
    write_agreement(runs["agree"])
    runs["bin"] = finished(root / "bin", {"kind": "bins"}, "run: " + json.dumps(EVIL[0]) + "\nbins: 2\n")
    bins = {
        "by": EVIL[2],
        "how": EVIL[0],
        "edges": [1.5],
        "counts": [2, 4],
        "tokens": [9, 30],
        "rows": 6,
        "unscored": 1,
    }
    (runs["bin"] / "bins.json").write_text(json.dumps(bins))
    runs["schedule"] = root / "schedule"
    runs["schedule"].mkdir()
    plan = {"config": {"name": EVIL[2]}, "kind": "order", "steps": 4, "tokens": 64, "drawn": [2, 2], "epochs": [1, 1]}
    (runs["schedule"] / "mixture.json").write_text(json.dumps(plan | {"mixture": [[1, 0], [0, 1]]}))
    runs["pretrain"] = write_training(root / "pretrain")
    runs["compare"] = finished(root / "compare", {"kind": "compare"}, arms=[EVIL[0]])
    write_words(runs["compare"] / "comparison.md")
    runs["hellaswag"] = finished(root / "hellaswag", {"kind": "questions", "model": {"name": EVIL[0]}}, task=EVIL[1])
    items = [Item(id=EVIL[0], ind=k, context=EVIL[1], label=0, entropy_mean=float(k), correct=True) for k in range(5)]
    pq.write_table(to_table(items), runs["hellaswag"] / "items.parquet")
    runs["diagnose"] = finished(root / "diagnose", {"command": "diagnose", "target": EVIL[0]})
    write_words(runs["diagnose"] / "summary.md")
    runs["grpo"] = finished(root / "grpo", {"kind": "grpo", "model": EVIL[0]})
    (runs["grpo"] / "metrics.csv").write_text(f'step,reward,eval_reward,"{EVIL[0]}"\n0,,0.25,\n1,0.5,,2\n2,0.75,,1\n')
    return runs


def write_tokens(path: Path) -> Path:
    """The table of two texts: one that the run of `write_all` holds, and another."""
    rows = [
        TokenRow(position=t, token_id=t, token=token, entropy=float(t), varentropy=2.0, surprisal=t or None,
                 entropy_before=float(t - 1) if t else None, varentropy_before=2.0 if t else None,
                 alternatives=[(EVIL[1], 0.5), ("\n", 0.25)])
        for t, token in enumerate(["text of ", EVIL[0], EVIL[2]])
    ]  # fmt: skip
    known = TokenView(text="", id=EVIL[0], model="m", tokens=rows[:2])
    other = TokenView(text="", id="elsewhere", model="m", tokens=[rows[0], rows[2]])
    write_csv([known, other], path)
    return path


def write_agreement(folder: Path) -> None:
    names = list(EVIL[:2])
    found = {"models": names, "labels": dict(zip(names, names, strict=True)), "n_texts": 7, "measure": EVIL[3]}
    found |= {"mean_spearman": 0.5, "kendall_w": 0.75, "spearman": [[1, 0.5], [0.5, None]]}
    found |= {"pca": {"explained_variance_ratio": [1.0]}, "rank_sd_by_quintile": [1, 2, 3, 2, None]}
    (folder / "agreement.json").write_text(json.dumps(found))
    write_picture(folder / "pca_models.png")


def write_training(folder: Path, name: str = EVIL[1]) -> Path:
    finished(folder, {"kind": "pretrain", "schedule": {"name": name}}, tokens=64, steps=4, parameters=10)
    head = f'step,tokens,train_loss,val_loss,val_bpb,lr,"val_bpb_bin_{EVIL[0]}"\n'
    rows = [f"{k},{16 * k},{5 - k},{5 - k},{6 - k},0.1,{k}\n" for k in range(5)]
    (folder / "metrics.csv").write_text(head + "".join(rows) + "5,80,,,,,\n")
    ledger = Ledger(folder)
    for step in range(1, 5):
        row = {"step": step, "tokens": 16 * step, "bins": [step, 4 - step], "lr": 0.1, "ids_hash": ""}
        assert set(row) == set(SCHEMA.names)
        ledger.add(row)
    ledger.finish(4)
    return folder


def write_words(path: Path) -> None:
    path.write_text(
        f"# Title\n\n## {EVIL[0]}\n\nIs **{EVIL[2]}** `{EVIL[1]}`?\n\n- {EVIL[3]}\n  - {EVIL[4]}\n\n"
        f"| arm | p |\n| --- | --- |\n| {EVIL[2]} | 0.5 |\n\n![{EVIL[2]}](effects.png)\n\n"
        f"![x](../../secret.png)\n\n```sh\n{EVIL[0]}\n```\n",
        encoding="utf-8",
    )
    write_picture(path.with_name("effects.png"))


def write_picture(path: Path, *, size: int = 40, seed: int = 0) -> None:
    """A picture of noise, which no compression makes small."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
