"""Multiple-choice questions -> the log-likelihood of each ending, and how uncertain the model was.

The protocol of lm-evaluation-harness: context and ending are tokenised together and cut at the length of the context's
own tokens; an ending's log-likelihood is the sum over its tokens after the context; `acc` takes the largest sum,
`acc_norm` the largest sum per character of the ending, `acc_bytes` per UTF-8 byte; of equal ones, the first. Endings of
the same tokens are read once, so that they have the same log-likelihood to the bit.

A context and its endings are one row, so that the context is computed once:

    ids       c0 c1 c2 | a0 a1 | b0 b1 b2
    position   0  1  2 |  3  4 |  3  4  5        an ending sees the context and itself, nothing else

Shape legend: B rows, L tokens of a row, C of a context, n of an ending, E endings.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fluxentropy.entropy import Head, TokenStats, token_stats
from fluxentropy.models.forward import PROBE_TOLERANCE, FastPath, ForwardPath, Grouped
from fluxentropy.models.fused import FusedPath, Span
from fluxentropy.models.loading import Decoder
from fluxentropy.models.tokenizers import Encoder
from fluxentropy.models.weights import is_out_of_memory
from fluxentropy.runs.engine import default_threads, one_thread_each
from fluxentropy.scoring.batching import plan_batches
from fluxentropy.scoring.scorer import default_batch_tokens

TOP_K = 100  # what APIs that truncate the distribution show at best
NOTHING = np.array([], dtype=np.int64)  # the tokens of an empty ending
HIDDEN = torch.finfo(torch.float32).min / 2  # added to the attention logits of what must not be seen


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A question as tokens. `status` is "ok", or why the model cannot be asked."""

    context: np.ndarray  # int64 (C,)
    endings: tuple[np.ndarray, ...]  # int64 (n,) each
    truncated: bool = False  # the context lost its beginning
    status: str = "ok"

    @property
    def length(self) -> int:
        """Tokens in the row of this prompt."""
        return len(self.context) + sum(map(len, self.endings))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the model made of one prompt: float64, in nats and nats²."""

    entropy: np.ndarray  # (C,) after each token of the context
    varentropy: np.ndarray  # (C,)
    top_probs: np.ndarray  # (C, k) most likely tokens, descending
    surprisal: tuple[np.ndarray, ...]  # (n,) of each token of an ending
    ending_entropy: tuple[np.ndarray, ...]  # (n,) of the distributions that predicted them


class Reader:
    """Runs prompts through a model: contexts once where the model allows it, else a row for each ending."""

    def __init__(
        self,
        decoder: Decoder,
        path: ForwardPath,
        *,
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.decoder, self.path = decoder, path
        self.threads = threads or default_threads()
        self.batch_tokens = batch_tokens or default_batch_tokens(decoder)
        self.encoder = Encoder(decoder.tokenizer, None)
        self.window = min(limit for limit in (max_tokens, decoder.window, 2**30) if limit is not None)
        self.fast, self.together = _shared_path(path)
        self.sliding = None if isinstance(self.fast, FusedPath) else _sliding_window(decoder)
        self.vocabulary = path.vocabulary
        self.shared, self.note = self._choose()

    # --- texts -> tokens ---

    def encode(self, contexts: Sequence[str], endings: Sequence[Sequence[str]], delimiter: str = " ") -> list[Prompt]:
        """Prompts of contexts and their endings. A context that is too long loses its beginning."""
        whole = [
            context + delimiter + ending
            for context, group in zip(contexts, endings, strict=True)
            for ending in group
            if ending.strip()
        ]
        starts = [item.ids for item in self.encoder.encode([context.rstrip() for context in contexts])]
        rows = iter(self.encoder.encode(whole))
        return [
            self._prompt(start, [next(rows).ids[len(start) :] if ending.strip() else NOTHING for ending in group])
            for start, group in zip(starts, endings, strict=True)
        ]

    def _prompt(self, context: np.ndarray, endings: Sequence[np.ndarray]) -> Prompt:
        if len(context) == 0:  # as the harness does: something must come before the first token
            tokenizer = self.decoder.tokenizer
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            context = np.array([first or 0], dtype=np.int64)
        longest = max(map(len, endings))
        room = self.window - longest + 1  # the last token of an ending is predicted, not read
        status = "ok"
        if min(map(len, endings)) == 0:
            status = "empty_ending"
        elif room < 1:
            status = "ending_too_long"
        kept = context if status != "ok" or len(context) <= room else context[-room:]
        return Prompt(context=kept, endings=tuple(endings), truncated=len(kept) < len(context), status=status)

    # --- tokens -> statistics ---

    def read(self, prompts: Sequence[Prompt], on_batch: Callable[[int], None] | None = None) -> list[Reading | None]:
        """A reading of each prompt, in order; None where its status is not "ok"."""
        found: list[Reading | None] = [None] * len(prompts)
        asked = [place for place, prompt in enumerate(prompts) if prompt.status == "ok"]
        once = {place: _each_once(prompts[place]) for place in asked}
        lengths = [once[place][0].length for place in asked]
        planned = plan_batches(lengths, self.batch_tokens, padded=self.path.padded)
        groups = [[once[asked[i]][0] for i in batch] for batch in planned]
        for batch, group, readings in zip(planned, groups, self._each(groups), strict=True):
            for i, reading in zip(batch, readings, strict=True):
                found[asked[i]] = _of_all(reading, once[asked[i]][1])
            if on_batch:
                on_batch(sum(prompt.length for prompt in group))
        return found

    def _each(self, groups: Sequence[Sequence[Prompt]]) -> Iterator[list[Reading]]:
        if self.decoder.device.type == "cpu" and self.path.parallel:
            return one_thread_each(self._read, groups, self.threads)
        return map(self._read, groups)

    @torch.inference_mode()
    def _read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        limits = [limit for limit in (self.sliding, self.together) if limit is not None]
        if not self.shared or any(prompt.length > limit for prompt in prompts for limit in limits):
            return [self._read_alone(prompt) for prompt in prompts]
        try:
            return self._read_shared(prompts)
        except RuntimeError as error:
            if len(prompts) == 1 or not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()  # does nothing without CUDA
            half = len(prompts) // 2
            return [*self._read(prompts[:half]), *self._read(prompts[half:])]

    def _read_shared(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """All endings of a prompt in its row."""
        path = self.fast
        assert path
        if isinstance(self.path, Grouped) and self.path.state:
            self.path.state.restore()
        device = self.decoder.device
        ids, positions, mask = (tensor.to(device) for tensor in shared_rows(prompts))
        context_at, ending_at, targets = (tensor.to(device) for tensor in _places(prompts))
        if isinstance(path, FusedPath):
            inside = torch.arange(ids.shape[1]) < torch.tensor([[prompt.length] for prompt in prompts])
            hidden = torch.empty(*ids.shape, path.decoder.width, dtype=path.decoder.dtype)  # (B, L, D)
            hidden[inside] = path.decoder.hidden(ids[inside], positions[inside], shared_spans(prompts))
            head: Head = path.decoder
        else:
            hidden = path.base(
                input_ids=ids, position_ids=positions, attention_mask=mask.to(self.decoder.dtype), use_cache=False
            )[0]
            head = path.head
        of_context = token_stats(hidden[context_at.unbind()], head=head, top_k=TOP_K)
        of_endings = token_stats(hidden[ending_at.unbind()], targets, head=head)
        return _readings(prompts, of_context, of_endings)

    def _read_alone(self, prompt: Prompt) -> Reading:
        """A row for each ending, through whatever path scores texts with this model."""
        C = len(prompt.context)
        rows = [np.concatenate([prompt.context, ending]) for ending in prompt.endings]
        device = self.decoder.device
        ids = nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
        at = torch.arange(ids.shape[1])
        begin = torch.tensor([[0 if row == 0 else C - 1] for row in range(len(rows))])
        end = torch.tensor([[len(row) - 1] for row in rows])
        keep = (at >= begin) & (at < end)
        targets = torch.from_numpy(np.concatenate([row[first + 1 :] for row, first in zip(rows, begin, strict=True)]))
        stats = self.path(ids.to(device), keep, targets.to(device), top_k=TOP_K)
        lengths = [len(ending) for ending in prompt.endings]
        starts = np.cumsum([0, C - 1 + lengths[0], *lengths[1:]])  # of the rows among the kept positions
        places = np.concatenate([np.arange(stop - n, stop) for stop, n in zip(starts[1:], lengths, strict=True)])
        return _readings([prompt], _take(stats, np.arange(C)), _take(stats, places))[0]

    def _choose(self) -> tuple[bool, str]:
        """Whether endings can share a row with this model, tried on random tokens, and a note."""
        if not self.fast:
            return False, f"each ending is read with its own context: the model takes the {self.path.name} path"
        rng = np.random.default_rng(0)
        vocabulary = self.vocabulary
        shapes = [(9, (3, 1, 4)), (5, (2, 6))]  # up to 17 tokens
        probes = [
            Prompt(
                context=rng.integers(0, vocabulary, C), endings=tuple(rng.integers(0, vocabulary, n) for n in endings)
            )
            for C, endings in shapes
        ]
        with torch.inference_mode():
            try:
                shared = self._read_shared(probes)
            except Exception as problem:  # a model that takes no such mask is read the other way
                return False, f"each ending is read with its own context: {type(problem).__name__}: {problem}"
            alone = [self._read_alone(probe) for probe in probes]
        error = max(_distance(a, b) for a, b in zip(shared, alone, strict=True))
        if not error <= PROBE_TOLERANCE[self.decoder.dtype]:
            return False, f"each ending is read with its own context: sharing it deviates by {error:.2g} nats"
        return True, f"contexts are read once for all their endings: deviation {error:.1g} nats on probes"


def _shared_path(path: ForwardPath) -> tuple[FastPath | FusedPath | None, int | None]:
    """The fast path where endings may share a row, and up to how many tokens (None: any)."""
    inner, limit = (path.path, path.limit) if isinstance(path, Grouped) else (path, None)
    allowed = limit is None or limit > 0
    return (inner, limit) if isinstance(inner, FastPath | FusedPath) and allowed else (None, limit)


def _each_once(prompt: Prompt) -> tuple[Prompt, list[int]]:
    """The prompt with endings of the same tokens once, and the place that each of its endings has there."""
    places: dict[bytes, int] = {}
    at = [places.setdefault(ending.tobytes(), len(places)) for ending in prompt.endings]
    first = [at.index(place) for place in range(len(places))]
    return dataclasses.replace(prompt, endings=tuple(prompt.endings[place] for place in first)), at


def _of_all(reading: Reading, at: Sequence[int]) -> Reading:
    """The reading of a prompt from that of `_each_once`."""
    surprisal, entropy = reading.surprisal, reading.ending_entropy
    return dataclasses.replace(
        reading, surprisal=tuple(surprisal[i] for i in at), ending_entropy=tuple(entropy[i] for i in at)
    )


def _sliding_window(decoder: Decoder) -> int | None:
    """The shortest attention window of any layer: a row beyond it needs masks that only the model itself makes."""
    value = getattr(decoder.config.get_text_config(), "sliding_window", None)
    return value if isinstance(value, int) and value > 0 else None


def shared_rows(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (B, L), positions (B, L) and additive attention mask (B, 1, L, L) of prompts with all their endings."""
    L = max(prompt.length for prompt in prompts)
    ids, positions = torch.zeros(len(prompts), L, dtype=torch.long), torch.zeros(len(prompts), L, dtype=torch.long)
    part = torch.full((len(prompts), L), -1)  # 0: context, 1, 2, …: endings, -1: padding
    for row, prompt in enumerate(prompts):
        C, start = len(prompt.context), 0
        for number, piece in enumerate((prompt.context, *prompt.endings)):
            stop = start + len(piece)
            ids[row, start:stop] = torch.from_numpy(piece)
            positions[row, start:stop] = torch.arange(len(piece)) + (C if number else 0)
            part[row, start:stop] = number
            start = stop
    earlier = torch.ones(L, L, dtype=torch.bool).tril()
    seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)  # (B, query, key)
    mask = torch.zeros(len(prompts), 1, L, L).masked_fill(~(seen & earlier)[:, None], HIDDEN)
    return ids, positions, mask


def shared_spans(prompts: Sequence[Prompt]) -> list[Span]:
    """The contexts and endings of prompts that lie end to end, each ending after its context."""
    spans, start = [], 0
    for prompt in prompts:
        C = len(prompt.context)
        spans.append(Span(start, C))
        at = start + C
        for ending in prompt.endings:
            spans.append(Span(at, len(ending), before=start, prefix=C))
            at += len(ending)
        start = at
    return spans


def _places(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column (2, ΣC) of context tokens, (2, Σn) of what predicts each token of the endings, and these (Σn,)."""
    context, endings, targets = [], [], []
    for row, prompt in enumerate(prompts):
        C = start = len(prompt.context)
        context += [(row, at) for at in range(C)]
        for ending in prompt.endings:
            endings += [(row, C - 1), *((row, at) for at in range(start, start + len(ending) - 1))]
            targets.append(torch.from_numpy(ending))
            start += len(ending)
    return torch.tensor(context).T, torch.tensor(endings).T, torch.cat(targets)


def _take(stats: TokenStats, places: np.ndarray) -> TokenStats:
    at = torch.from_numpy(places).to(stats.entropy.device)
    return TokenStats(*(None if column is None else column[at] for column in stats))  # type: ignore[arg-type]


def _readings(prompts: Sequence[Prompt], of_context: TokenStats, of_endings: TokenStats) -> list[Reading]:
    """The statistics of all positions, cut into prompts and endings."""
    assert of_context.top_probs is not None
    assert of_endings.surprisal is not None
    entropy, varentropy, top_probs, surprisal, ending_entropy = (
        column.double().cpu().numpy()
        for column in (
            of_context.entropy,
            of_context.varentropy,
            of_context.top_probs,
            of_endings.surprisal,
            of_endings.entropy,
        )
    )
    found, c, e = [], 0, 0
    for prompt in prompts:
        stop = c + len(prompt.context)
        cuts = e + np.cumsum([0, *map(len, prompt.endings)])
        spans = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        found.append(
            Reading(
                entropy=entropy[c:stop],
                varentropy=varentropy[c:stop],
                top_probs=top_probs[c:stop],
                surprisal=tuple(surprisal[span] for span in spans),
                ending_entropy=tuple(ending_entropy[span] for span in spans),
            )
        )
        c, e = stop, int(cuts[-1])
    return found


def _distance(a: Reading, b: Reading) -> float:
    """Mean absolute difference of two readings, in nats."""
    pairs = [(a.entropy, b.entropy), *zip(a.surprisal, b.surprisal, strict=True)]
    return float(np.mean(np.concatenate([np.abs(x - y) for x, y in pairs])))
