"""The callback in TRL's own trainer, on a random model of two layers: what is logged, and that nothing else changes."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fluxentropy.errors import UsageError
from fluxentropy.rl import probe as rl
from fluxentropy.rl.probe.attribution import QUADRANTS

pytest.importorskip("trl")


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # trl and what it imports may have some of their own
    from trl import GRPOConfig, GRPOTrainer

    from fluxentropy.rl import EntropyProbeCallback, RecordingGRPOTrainer
    from fluxentropy.rl import trl as trl_callback
    from fluxentropy.rl.trl import check_sampling, check_update


pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's trainer warns of its own defaults
WORDS = ["<pad>", "<eos>", *"abcdefghij"]
PROMPTS = ["a b", "c d e", "f", "g h i j", "b b", "e"]


def tokenizer():
    inner = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="a"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def reward(completions, **_):
    return [float(text.count("a") - text.count("b")) for text in completions]


def trainer(folder, cls=GRPOTrainer, **options):
    settings = {
        "per_device_train_batch_size": 12, "num_generations": 4, "max_completion_length": 5, "max_steps": 3,
        "learning_rate": 1e-3, "logging_steps": 1, "loss_type": "dr_grpo", "beta": 0.0, "weight_decay": 0.1,
        "bf16": False,
    } | options  # fmt: skip
    args = GRPOConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        **settings,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["a b c", "d", "e f", "g a", "h i", "j"]})
    return cls(model=model(), reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer())


def weights(found):
    return torch.cat([p.detach().flatten() for p in found.model.parameters()])


def rows_of(found, name):
    return [row for row in found.state.log_history if name in row]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trainer(tmp_path_factory.mktemp("plain"))
        found.train()
    return found


def test_training_is_the_same_to_the_bit_and_so_is_what_it_logs(tmp_path, plain):
    found = trainer(tmp_path)
    found.add_callback(EntropyProbeCallback(found, PROMPTS, every=2, parts=["measured", "first_order", "split"]))
    found.train()
    assert torch.equal(weights(found), weights(plain))
    assert not torch.equal(weights(plain), torch.cat([p.flatten() for p in model().parameters()]))
    assert found.model.generation_config.do_sample is not True and found.model.training == plain.model.training
    probed = rows_of(found, "probe_measured_per_token")
    assert [row["step"] for row in probed] == [1, 3]
    own, same = (
        [
            {k: v for k, v in row.items() if "time" not in k and "runtime" not in k and "per_second" not in k}
            for row in t.state.log_history
            if "probe_measured_per_token" not in row
        ]
        for t in (found, plain)
    )
    assert own == same  # every row of the trainer's own, at its step, with its running means whole


def test_other_logging_steps_keep_their_running_means(tmp_path):
    pair = []
    for probed in (True, False):
        found = trainer(tmp_path / str(probed), logging_steps=2, max_steps=2)
        if probed:
            found.add_callback(EntropyProbeCallback(found, PROMPTS, every=1, parts=["measured"]))
        found.train()
        pair.append(rows_of(found, "entropy"))
    (one,), (other,) = pair
    assert one["entropy"] == other["entropy"] and one["reward"] == other["reward"] and one["step"] == 2


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo", "dapo"])
def test_the_update_s_gradient_entropy_and_parts_are_those_of_the_step(tmp_path, loss_type):
    """Two micro-batches, clipped gradients, a temperature; against the gradients that TRL left on the parameters."""
    steps = 2 if loss_type == "dapo" else 1  # TRL's default has all parts, and momentum
    found = trainer(
        tmp_path, RecordingGRPOTrainer, loss_type=loss_type, max_steps=steps, gradient_accumulation_steps=2,
        temperature=0.7, max_grad_norm=0.05, learning_rate=1e-4,
    )  # fmt: skip
    seen = []

    class Compare(trl_callback.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            update, policy = found.update_batch(), rl.Policy(found.model)
            Y = rl.update_weights(update.advantages, update.mask, 1.0)
            ours = rl.weighted_gradient(policy, update, Y)
            theirs = {n: -p.grad / found.clip for n, p in found.model.named_parameters()}
            stats = rl.sequence_stats(policy, update)
            entropy = float(stats.entropy.sum() / update.mask.sum())
            seen.append((rl.flatten(ours), rl.flatten(theirs), entropy, found.clip, update.shape))

    found.add_callback(Compare())
    parts = ["measured", "first_order", "split", "two_batch"]
    parts += ["second_order", "u_statistic", "kernel"] if steps == 2 else []
    probes = loss_type in ("grpo", "dapo")  # what comes of the gradient does not depend on the loss
    if probes:
        found.add_callback(EntropyProbeCallback(found, PROMPTS * 2, parts=parts, sketch=2, attribute=True, every=1))
    found.train()
    probed, logged = rows_of(found, "probe_step_norm"), rows_of(found, "entropy")
    assert len(seen) == steps and len(probed) == steps * probes
    for ours, theirs, _, clip, shape in seen:
        assert clip < 1 and shape == (6, 4)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))
    for row in probed:
        gap = row["probe_two_batch_per_sequence"] - row["probe_batch_per_sequence"]  # other baselines, same expectation
        assert abs(gap) < 3 * row["probe_batch_per_sequence_se"]
        assert row["probe_attribution_total"] == pytest.approx(row["probe_two_batch_per_sequence"], rel=1e-3)
        parts = sum(row[f"probe_attribution_{name}"] for name in QUADRANTS)
        assert parts == pytest.approx(row["probe_attribution_total"], rel=1e-9)
        error = row["probe_measured_per_sequence_se"]
        assert abs(row["probe_first_per_sequence"] - row["probe_measured_per_sequence"]) < 3 * error + 1e-5
        if steps == 2:
            predicted = pytest.approx(row["probe_measured_per_sequence"], rel=0.02)
            assert row["probe_predicted_per_sequence"] == predicted
        assert abs(row["probe_measured_per_sequence"]) > 0
    for row, (_, _, entropy, _, _) in zip(logged, seen, strict=True):  # TRL: the mean over micro-batches of their means
        assert row["entropy"] == pytest.approx(entropy, rel=0.05)
    if probes:
        table = pq.read_table(tmp_path / "attribution" / f"step_{steps:06d}.parquet")
        assert table.column("change").to_numpy().sum() == pytest.approx(probed[-1]["probe_attribution_total"])


def test_mixed_precision_does_not_blur_the_change(tmp_path):
    """With autocast in the probe the two differ by 0.011 nats here, more than the change itself."""
    found = trainer(tmp_path, max_steps=1, bf16=True)
    found.add_callback(EntropyProbeCallback(found, PROMPTS * 4, parts=["measured", "second_order"]))
    found.train()
    (row,) = rows_of(found, "probe_step_norm")
    assert row["probe_predicted_per_sequence"] == pytest.approx(row["probe_measured_per_sequence"], abs=2e-3)
    assert found.model.dtype == torch.float32 and abs(row["probe_measured_per_sequence"]) > 2e-3


def test_our_entropy_is_trl_s_where_both_are_defined(tmp_path):
    """One micro-batch, no dropout; not so where cut responses are left out of TRL's mask."""
    found = trainer(tmp_path, RecordingGRPOTrainer, max_steps=1, temperature=0.8)
    seen = []

    class Ours(trl_callback.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            update = found.update_batch()
            seen.append((rl.sequence_stats(rl.Policy(found.model), update), update.mask))

    found.add_callback(Ours())
    found.train()
    (stats, mask), (row,) = seen[0], rows_of(found, "entropy")
    ours = rl.sequence_entropy(stats, mask).per_token.value
    assert row["entropy"] == pytest.approx(ours, rel=1e-5)
    whole = mask.sum(-1) < 5  # the responses that ended by themselves, roughly
    assert whole.any() and not whole.all()
    masked = trainer(tmp_path / "m", max_steps=1, temperature=0.8, mask_truncated_completions=True)
    masked.train()
    (row,) = rows_of(masked, "entropy")
    assert abs(row["entropy"] - ours) > 1e-3  # the same responses, but the cut ones are left out


def test_the_entropy_batch_is_what_the_policy_samples(tmp_path, plain):
    """Frequencies of the first token against its probabilities, prompts of other lengths beside it."""
    callback = EntropyProbeCallback(plain, ["a b", "c d e f", "g"], responses=400, rows=700)
    batch = callback.sample(plain.model, 0)
    policy, mask = rl.Policy(plain.model), batch.mask
    for n in range(3):
        ids = torch.tensor([batch.prompt(n)])
        with torch.no_grad():
            p = policy.logits(policy.parameters(), ids, torch.ones_like(ids))[0, -1].double().softmax(-1).numpy()
        counts = np.bincount(batch.tokens[n, :, 0].numpy(), minlength=len(p))
        z = (counts - 400 * p) / np.sqrt(400 * p * (1 - p))
        assert np.abs(z).max() < 4
    # E[-S - Σ H] = 0, also of the later tokens, which follow a cache with padding on the left
    stats = rl.sequence_stats(policy, batch)
    gap = (-stats.logp - stats.entropy).sum(-1).flatten()
    assert abs(float(gap.mean() / gap.std()) * len(gap) ** 0.5) < 4
    ends = batch.tokens.gather(2, batch.lengths[..., None] - 1)[..., 0]
    assert ((ends == 1) | (batch.lengths == 5)).all() and mask.any()
    again, later = callback.sample(plain.model, 0), callback.sample(plain.model, 1)
    assert torch.equal(again.ids, batch.ids) and not torch.equal(later.tokens[:, :, 0], batch.tokens[:, :, 0])


def test_a_skipped_step_is_not_recorded(tmp_path, monkeypatch, caplog):
    found = trainer(tmp_path, max_steps=1)
    found.add_callback(EntropyProbeCallback(found, PROMPTS, parts=["measured"]))
    monkeypatch.setattr(type(found.accelerator), "optimizer_step_was_skipped", property(lambda self: True))
    with caplog.at_level(logging.WARNING, "fluxentropy.rl.trl"):
        found.train()
    assert not rows_of(found, "probe_step_norm") and "step 1 was skipped" in caplog.text


def test_what_cannot_be_probed_is_refused(tmp_path, plain):
    with pytest.raises(UsageError, match=r"top_p 0.9: .*whole vocabulary"):
        check_sampling(GRPOConfig(output_dir=str(tmp_path), top_p=0.9, bf16=False))
    with pytest.raises(UsageError, match="top_k 5"):
        check_sampling(GRPOConfig(output_dir=str(tmp_path), generation_kwargs={"top_k": 5}, bf16=False))
    with pytest.raises(UsageError, match="generation_kwargs 'num_beams'"):
        check_sampling(GRPOConfig(output_dir=str(tmp_path), generation_kwargs={"num_beams": 2}, bf16=False))
    with pytest.raises(UsageError, match="2 prompts"):
        EntropyProbeCallback(plain, ["a", "b"])
    with pytest.raises(UsageError, match="every 0"):
        EntropyProbeCallback(plain, PROMPTS, every=0)
    with pytest.raises(UsageError, match="GRPOTrainer does not keep the update's batch"):
        EntropyProbeCallback(plain, PROMPTS, parts=["u_statistic"])
    with pytest.raises(UsageError, match=r"beta 0.1: .* need 0"):
        check_update(GRPOConfig(output_dir=str(tmp_path), beta=0.1, bf16=False, loss_type="dapo"))
    with pytest.raises(UsageError, match="loss_type 'sapo'"):
        check_update(GRPOConfig(output_dir=str(tmp_path), loss_type="sapo", bf16=False))
    with pytest.raises(UsageError, match="4 processes"):
        check_update(GRPOConfig(output_dir=str(tmp_path), beta=0.0, bf16=False), processes=4)
