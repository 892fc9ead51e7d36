"""Texts -> scores: the hot path, between tokenised texts and one row of numbers each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.entropy import TokenStats, concatenate
from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.forward import ForwardPath
from fluxentropy.models.loading import Decoder
from fluxentropy.models.paths import choose_path, open_path
from fluxentropy.models.tokenizers import PREDICTED_BYTES, Encoded, Encoder
from fluxentropy.models.weights import is_out_of_memory
from fluxentropy.models.zoo import ZooEntry, find_model
from fluxentropy.runs.engine import default_threads, one_thread_each
from fluxentropy.scoring.batching import CudaMemory, Memory, Row, TextStats, plan_batches, probed_budget, windows
from fluxentropy.scoring.parts import Work
from fluxentropy.scoring.scores import Scores
from fluxentropy.scoring.tokens import Tokens, as_texts, described, token_table

CPU_BATCH_TOKENS = 512  # of each thread; larger batches fall out of the caches, and need more memory (docs/LOG.md)
GPU_BATCH_TOKENS = 65536  # where the memory is not asked
GPU_FIRST_TOKENS, GPU_MOST_TOKENS = 2048, 2**18  # between which the memory decides
GPU_BATCH_WORK = 2**46  # FLOP: larger models fill a GPU with fewer tokens, and a batch takes no more than seconds
OPTIONS = ("device", "dtype", "offline", "max_tokens", "window", "stride", "batch_tokens", "threads")
T = TypeVar("T")
R = TypeVar("R")


class Scorer:
    """Scores texts with one decoder.

    Policies: `window="first"` scores the first `max_tokens` tokens of a text and flags it `truncated`; "sliding"
    scores all of it in windows of `max_tokens`, each token after at least `max_tokens - stride` tokens of context
    (fewer only near the start). Texts with the same tokens are run once. A batch that does not fit is halved.

    On a CPU, `threads` threads (by default one for each core that this process may use) take batches of at most
    `batch_tokens` tokens, each on one core. The numbers do not depend on how many they are.

    Errors: UsageError when `max_tokens` exceeds the model's window; ModelError when the model is not a causal
    decoder, or a single row does not fit on the device.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_tokens: int = 512,
        window: str = "first",
        stride: int | None = None,
        batch_tokens: int | None = None,
        threads: int | None = None,
        path: ForwardPath | None = None,
    ) -> None:
        if window not in ("first", "sliding"):
            raise UsageError(f"window {window!r}: use first or sliding")
        if decoder.window is not None and max_tokens > decoder.window:
            raise UsageError(
                f"max_tokens {max_tokens} is beyond the window of {decoder.name}, {decoder.window} tokens: "
                f"lower it, or use --window sliding"
            )
        self.decoder = decoder
        self.max_tokens = max_tokens
        self.sliding = window == "sliding"
        self.stride = stride or max(max_tokens // 2, 1)
        self.encoder = Encoder(decoder.tokenizer, None if self.sliding else max_tokens)
        if self.sliding and self.stride > max_tokens - self.encoder.n_prefix:
            raise UsageError(
                f"stride {self.stride}: windows of {max_tokens} tokens, special ones included, have room for "
                f"{max_tokens - self.encoder.n_prefix}"
            )
        self._batch_tokens = batch_tokens
        self.narrowed = False  # a batch did not fit into memory
        chosen = path or choose_path(decoder)[0]
        assert chosen is not None  # without packing there is always the plain path
        self.path: ForwardPath = chosen
        self.vocabulary, self.outcomes = self.path.vocabulary, self.path.outcomes
        self.threads = threads or default_threads()
        self.work = Work()
        self.opened: tuple[ZooEntry, dict[str, Any]] | None = None  # what `open_scorer` would open again
        self.named: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        zoo: Path | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Scorer:
        """The scorer of a zoo name, a Hub id, a folder or a .gguf file.

        `zoo` is a YAML file with more names. `options` are those of `open_scorer`: device ("auto"), dtype ("auto",
        "fp32", "bf16", "fp16", "int8"), offline, max_tokens (512), window ("first", "sliding"), stride, batch_tokens,
        threads.

            scorer = Scorer.from_pretrained("smollm2-135m-instruct", dtype="bf16")
            scorer(["To be"])[0].entropy_mean       # nats

        Errors: UsageError for a name that nothing has, or an option that the model cannot have; ModelError where the
        files of the model are missing, damaged, or of no causal decoder.
        """
        for name in options:
            if name not in OPTIONS:
                raise UsageError(f"Scorer.from_pretrained: unknown option {name}{did_you_mean(name, OPTIONS)}")
        entry = find_model(str(model), zoo=zoo, revision=revision, trust_remote_code=trust_remote_code)
        scorer = open_scorer(entry, **options)[0]
        names = {"zoo": zoo, "revision": revision, "trust_remote_code": trust_remote_code}
        scorer.named = {"model": str(model), **names, **options}
        return scorer

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of a batch. Where nobody named a number, a GPU's memory is asked when this is first needed."""
        if self._batch_tokens is None:
            memory = device_memory(self.decoder.device)
            self._batch_tokens = self._probe(memory) if memory else default_batch_tokens(self.decoder)
        return self._batch_tokens

    @batch_tokens.setter
    def batch_tokens(self, tokens: int) -> None:
        self._batch_tokens = tokens

    def _probe(self, memory: Memory) -> int:
        """The budget that `memory` has room for, tried with rows of `max_tokens`."""
        ids = np.random.default_rng(0).integers(0, self.vocabulary, self.max_tokens)

        def run(tokens: int) -> None:
            self._forward([Row(text=0, ids=ids)] * max(tokens // len(ids), 1))

        first = max(GPU_FIRST_TOKENS, 2 ** (self.max_tokens - 1).bit_length())
        work = 2 * self.decoder.model.num_parameters()
        return probed_budget(run, memory, first=first, most=min(GPU_MOST_TOKENS, GPU_BATCH_WORK // work))

    def as_options(self) -> dict[str, Any]:
        """This model and these policies as options of a command: `fluxentropy.score("web.jsonl", model=scorer, ...)`.

        The command opens the model again, in its own processes. Errors: UsageError for a scorer without a name.
        """
        if self.named is None:
            raise UsageError("a command needs a model by name: use Scorer.from_pretrained")
        return self.named

    def __call__(self, texts: str | Iterable[str]) -> list[Scores]:
        """The same as `score`."""
        return self.score(texts)

    def encode(self, texts: str | Iterable[str | None]) -> list[Encoded]:
        """Token ids of each text, or of one text; None, a row of data without a text, counts as an empty text.

        Errors: UsageError that names what is no text, and its place.
        """
        return self.encoder.encode([text or "" for text in as_texts(texts, nulls=True)])

    def score(self, texts: str | Iterable[str]) -> list[Scores]:
        """The scores of each text, in order; of a single text, a list of one.

        The result for a text does not depend on its neighbours, up to float noise (1e-4 in float32).
        Errors: UsageError that names what is no text, None too, and its place.
        """
        return self.score_encoded(self.encode(as_texts(texts)))

    def compared(self, texts: Sequence[str]) -> str:
        """How far the entropies of some texts are from those in float32, in words. The model is loaded again for it.

        Errors: UsageError for a scorer of a Decoder, which cannot be opened again.
        """
        if self.opened is None:
            raise UsageError("only a scorer that was opened by name can be compared: use Scorer.from_pretrained")
        entry, options = self.opened
        exact = open_scorer(entry, **{**options, "dtype": "fp32"})[0]
        pairs = [
            (a.entropy_mean, b.entropy_mean)
            for a, b in zip(self.score(texts), exact.score(texts), strict=True)
            if a.entropy_mean is not None and b.entropy_mean is not None
        ]
        if not pairs:
            return "no text to compare with fp32"
        ours, theirs = np.array(pairs).T
        off = np.abs(ours - theirs)
        said = f"mean entropies of the first {len(pairs)} texts are {off.mean():.3f} nats from those in fp32 on average"
        return f"{said}, {off.max():.3f} at most"

    def columns(self, text_field: str = "text") -> ScoreColumns:
        """What `Dataset.map(scorer.columns("text"), batched=True)` calls: a batch -> its score columns.

        `datasets` caches the result under the data, the model's fingerprint and the policies. A row without a text
        (None) gets null scores. With `num_proc`, each process opens the model itself.
        """
        return ScoreColumns(self, text_field)

    def tokens(self, text: str, *, top_k: int = 0) -> Tokens:
        """A row for each token of a text, as `tokens.csv` and the pages have it, and each column as an array.

        `surprisal` is of the token itself, `entropy_before` of the distribution that it was drawn from, `entropy` of
        the one after it. With `top_k`, `alternatives` are the likeliest next tokens. A text without tokens has no rows.
        Errors: UsageError for what is no text.
        """
        if not isinstance(text, str):
            raise UsageError(f"tokens: {described(text)} is no text: give a string")
        return Tokens(self.token_table(self.encode(text)[0], top_k=top_k))

    def token_table(self, encoded: Encoded, *, top_k: int = 0) -> pa.Table:
        """Like `tokens` for a tokenised text."""
        return next(self.token_tables([encoded], top_k=top_k))

    def token_tables(self, encoded: Iterable[Encoded], *, top_k: int = 0) -> Iterator[pa.Table]:
        """`token_table` of each text; on a CPU by threads of one core each, as scores are made."""

        def found(item: Encoded) -> tuple[Encoded, TokenStats | None]:
            return item, self.position_stats(item, top_k=top_k or None) if len(item.ids) else None

        for item, stats in self._each(found, encoded):
            yield token_table(item.ids, stats, self.decoder.tokenizer.decode)

    def score_encoded(
        self,
        encoded: Sequence[Encoded],
        on_batch: Callable[[int], None] | None = None,
        on_text: Callable[[int, np.ndarray], None] | None = None,
    ) -> list[Scores]:
        """Like `score` for tokenised texts. `on_batch` is told the number of tokens after each batch.

        `on_text` gets, as soon as the last of a text's tokens has its statistics, the index of the text and a (3, T)
        float32 array of entropy, varentropy and surprisal. A text without tokens has none.
        """
        same: dict[bytes, list[int]] = {}  # token ids -> the texts that have them; the first is run
        rows: list[Row] = []
        for index, item in enumerate(encoded):
            self._check_ids(item.ids)
            texts = same.setdefault(item.ids.tobytes(), [])
            texts.append(index)
            if len(item.ids) and len(texts) == 1:
                rows += self._rows(index, item)

        def tell(index: int, values: np.ndarray) -> None:
            assert on_text
            for text in same[encoded[index].ids.tobytes()]:
                on_text(text, values)

        totals = np.zeros((len(encoded), len(_TOTALS)))
        gathered = TextStats([len(item.ids) for item in encoded], tell) if on_text else None
        self._run(rows, totals, on_batch, gathered)
        return [_scores(item, totals[same[item.ids.tobytes()][0]] if len(item.ids) else None) for item in encoded]

    def position_stats(self, encoded: Encoded, top_k: int | None = None) -> TokenStats:
        """Statistics of every position of one text, float32 (T,), by position and not by token: all of them are of the
        distribution after token t, and surprisal[t] is token t + 1's, NaN at the end. `tokens` has them by token."""
        return concatenate([self._forward([row], top_k) for row in self._rows(0, encoded)])

    def _rows(self, index: int, item: Encoded) -> list[Row]:
        if not self.sliding:
            return [Row(text=index, ids=item.ids)]
        return list(windows(index, item.ids, self.max_tokens, self.stride, item.n_prefix))

    def _check_ids(self, ids: np.ndarray) -> None:
        if len(ids) and ids.max() >= self.vocabulary:
            raise ModelError(
                f"the tokenizer of {self.decoder.name} gave token {ids.max()}, its model has {self.vocabulary}: "
                f"they do not belong together"
            )

    def _run(
        self,
        rows: Sequence[Row],
        totals: np.ndarray,
        on_batch: Callable[[int], None] | None,
        gathered: TextStats | None,
    ) -> None:
        """Add the totals of every row to its text's line of `totals` (texts, 8), and its statistics to `gathered`."""
        lengths = [len(row.ids) for row in rows]
        few = len(rows) * max(lengths, default=0) <= CPU_BATCH_TOKENS  # one batch in any case: nobody asks the memory
        budget = CPU_BATCH_TOKENS if few and self._batch_tokens is None else self.batch_tokens
        planned = plan_batches(lengths, budget, padded=self.path.padded)
        started = time.perf_counter()
        for done in self._each(self._whole_or_halved, [[rows[i] for i in batch] for batch in planned]):
            for batch, stats in done:
                _add_totals(totals, batch, stats)
                if gathered:
                    gathered.add(batch, stats)
                self._count(batch)
                if on_batch:
                    on_batch(sum(len(row.ids) for row in batch))
        self.work.seconds += time.perf_counter() - started

    def _each(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        if self.decoder.device.type == "cpu" and self.path.parallel:
            return one_thread_each(work, items, self.threads)
        return map(work, items)

    def _whole_or_halved(self, batch: list[Row]) -> list[tuple[list[Row], TokenStats]]:
        """A batch and its statistics; where it does not fit into memory, those of its parts."""
        if self.narrowed and len(batch) > 1 and sum(len(row.ids) for row in batch) > self.batch_tokens:
            return self._halved(batch)
        try:
            return [(batch, self._forward(batch))]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError(
                    f"a text of {len(batch[0].ids)} tokens does not fit in the memory of {self.decoder.device}: "
                    f"lower --max-tokens"
                ) from error
        torch.cuda.empty_cache()  # does nothing without CUDA
        self.batch_tokens = max(self.batch_tokens // 2, 1)
        self.narrowed = True
        return self._halved(batch)

    def _halved(self, batch: list[Row]) -> list[tuple[list[Row], TokenStats]]:
        half = len(batch) // 2
        return [*self._whole_or_halved(batch[:half]), *self._whole_or_halved(batch[half:])]

    def _count(self, batch: Sequence[Row]) -> None:
        lengths = [len(row.ids) for row in batch]
        self.work.tokens += sum(lengths)
        self.work.padded += max(lengths) * len(lengths) if self.path.padded else sum(lengths)

    def _forward(self, batch: Sequence[Row], top_k: int | None = None) -> TokenStats:
        """Statistics (N,) of the kept positions of a batch, row after row, on the CPU."""
        device = self.decoder.device
        ids = nn.utils.rnn.pad_sequence([torch.from_numpy(row.ids) for row in batch], batch_first=True)  # (B, T)
        position = torch.arange(ids.shape[1])
        begin = torch.tensor([[row.keep_from] for row in batch])
        end = torch.tensor([[len(row.ids)] for row in batch])
        keep = (position >= begin) & (position < end)
        targets = torch.from_numpy(np.concatenate([row.targets for row in batch]))  # (N,)
        with torch.inference_mode():
            stats = self.path(ids.to(device), keep, targets.to(device), top_k=top_k)
            return concatenate([stats], lambda column: column.cpu())


# --- from per-token statistics to per-text scores ---------------------------------------------------------------------

_TOTALS = (
    "positions",
    "entropy",
    "varentropy",
    "sqrt_varentropy",
    "targets",
    "surprisal",
    "entropy_last",
    "varentropy_last",
)


class ScoreColumns:
    """The score columns of batches of records; pickled as the names of its parts, so that its hash is theirs."""

    def __init__(self, scorer: Scorer, text_field: str) -> None:
        self.scorer, self.text_field = scorer, text_field

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        scores = self.scorer.score_encoded(self.scorer.encode(batch[self.text_field]))
        return {field.name: [getattr(row, field.name) for row in scores] for field in fields(Scores)}

    def __reduce__(self) -> tuple[Any, ...]:
        scorer, decoder = self.scorer, self.scorer.decoder
        policies = (scorer.max_tokens, scorer.sliding, scorer.stride, PREDICTED_BYTES)
        return _opened_columns, (scorer.opened, self.text_field, decoder.fingerprint, str(decoder.dtype), policies)


def _opened_columns(opened: tuple[ZooEntry, dict[str, Any]] | None, text_field: str, *_: object) -> ScoreColumns:
    if opened is None:
        raise UsageError("a Scorer of a Decoder cannot go to another process: use Scorer.from_pretrained")
    return ScoreColumns(open_scorer(opened[0], **opened[1])[0], text_field)


def _add_totals(totals: np.ndarray, batch: Sequence[Row], stats: TokenStats) -> None:
    """Add each row's sums, in float64, to the line of its text; the last row of a text also sets the last position."""
    assert stats.surprisal is not None
    entropy, varentropy, surprisal = (
        column.double().numpy() for column in (stats.entropy, stats.varentropy, stats.surprisal)
    )
    start = 0
    for row in batch:
        n = len(row.ids) - row.keep_from
        h, v, s = (column[start : start + n] for column in (entropy, varentropy, surprisal))
        start += n
        if row.next_id is None:
            s = s[:-1]  # nothing follows the last token
            totals[row.text, 6:] = h[-1], v[-1]
        totals[row.text, :6] += n, h.sum(), v.sum(), np.sqrt(v).sum(), len(s), s.sum()


def _scores(item: Encoded, totals: np.ndarray | None) -> Scores:
    """The scores of one text from its totals (8,), or the empty scores of a text without tokens."""
    counts: dict[str, Any] = {"n_tokens": len(item.ids), "n_bytes": item.n_bytes, "truncated": item.truncated}
    if totals is None:
        return Scores(**counts, status="empty")
    if not np.isfinite(totals).all():
        return Scores(**counts, n_predicted_bytes=item.n_predicted_bytes, status="nan")
    positions, entropy, varentropy, root, targets, surprisal, entropy_last, varentropy_last = (float(x) for x in totals)
    mean = surprisal / targets if targets else None
    return Scores(
        entropy_mean=entropy / positions,
        entropy_sum=entropy,
        entropy_last=entropy_last,
        varentropy_mean=varentropy / positions,
        varentropy_sum=varentropy,
        varentropy_last=varentropy_last,
        sqrt_varentropy_mean=root / positions,
        surprisal_mean=mean,
        surprisal_sum=surprisal if targets else None,
        perplexity=None if mean is None else math.exp(min(mean, 700.0)),
        bits_per_byte=surprisal / math.log(2) / item.n_predicted_bytes if targets and item.n_predicted_bytes else None,
        n_predicted_bytes=item.n_predicted_bytes,
        **counts,
    )


def device_memory(device: torch.device) -> Memory | None:
    """The memory of a GPU that can be asked for it."""
    return CudaMemory(device) if device.type == "cuda" else None


def default_batch_tokens(decoder: Decoder) -> int:
    """Padded tokens of a batch, where nobody asked for another number, nor a memory."""
    return CPU_BATCH_TOKENS if decoder.device.type == "cpu" else GPU_BATCH_TOKENS


def open_scorer(
    entry: ZooEntry, *, device: str = "auto", dtype: str = "auto", offline: bool = False, **options: object
) -> tuple[Scorer, tuple[str, ...]]:
    """Load a model and return its scorer and notes on what was chosen; `options` are those of `Scorer`."""
    decoder, path, notes = open_path(entry, device=device, dtype=dtype, offline=offline)
    scorer = Scorer(decoder, path=path, **options)  # type: ignore[arg-type]
    scorer.opened = (entry, {"device": device, "dtype": dtype, "offline": offline, **options})
    return scorer, notes
