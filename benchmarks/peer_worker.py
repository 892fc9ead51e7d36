"""One contender of peers.py, in an environment of its own: it loads a model and gives the statistics of token ids.

    python peer_worker.py ENGINE PRECISION JOB.json

The job names the model's folder (a Llama with tied embeddings), the threads, and the texts as token ids. A line on
stdin is a JSON list of texts by number; the answer is a line on stdout with the means (N,) of `entropy` and
`varentropy` over all positions of each text, and of `surprisal` over those that have a next token, in nats, and the
seconds it took.
Nothing of fluxentropy is imported, but by its own contender.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Means = tuple[float, float, float]  # entropy, varentropy, surprisal
Run = Callable[[list[list[int]]], Sequence[Means]]


def means(entropy: Any, varentropy: Any, surprisal: Any) -> Means:
    """Of arrays (T,); the last surprisal has no target."""
    return float(entropy.mean()), float(varentropy.mean()), float(surprisal[:-1].mean())


def longest_first(texts: list[list[int]], tokens: int) -> list[list[int]]:
    """Batches of numbers of texts, of at most `tokens` padded tokens each."""
    batches: list[list[int]] = []
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if batches and (len(batches[-1]) + 1) * len(texts[batches[-1][0]]) <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


# --- a Llama in torch: the reference in float64, and what OpenVINO converts -------------------------------------------


def statistics(logits: Any, targets: Any) -> tuple[Any, Any, Any]:
    """Entropy, varentropy and surprisal (B, T) of logits (B, T, V), from the moments of the shifted logits."""
    shifted = logits - logits.amax(-1, keepdim=True)
    weight = shifted.exp()
    total = weight.sum(-1)
    first = weight * shifted
    mean = first.sum(-1) / total
    square = (first * shifted).sum(-1) / total
    chosen = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return total.log() - mean, square - mean * mean, total.log() - chosen


def llama(folder: Path, dtype: str, max_tokens: int) -> Any:
    """A module: ids, next ids (B, T) -> entropy, varentropy, surprisal (B, T)."""
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional

    config = json.loads((folder / "config.json").read_text())
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    weights = {name: value.to(getattr(torch, dtype)) for file in files for name, value in file.items()}
    heads, groups, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    cos, sin = (torch.from_numpy(table).to(getattr(torch, dtype)) for table in rotary(config, max_tokens))

    def weight(name: str) -> Any:
        return weights[f"model.{name}.weight"]

    def norm(x: Any, name: str) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight(name)

    def turned(x: Any) -> Any:
        """x (B, heads, T, width) with its two halves as the axes of a rotation by position."""
        a, b = x.chunk(2, -1)
        c, s = cos[: x.shape[2]], sin[: x.shape[2]]
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    def attention(x: Any, layer: str) -> Any:
        q, k, v = (
            functional.linear(x, weight(f"{layer}.self_attn.{part}_proj"))
            .view(x.shape[0], x.shape[1], -1, width)
            .transpose(1, 2)
            for part in "qkv"
        )
        k, v = (part.repeat_interleave(heads // groups, 1) for part in (turned(k), v))
        mixed = functional.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).flatten(2), weight(f"{layer}.self_attn.o_proj"))

    class Llama(nn.Module):
        def forward(self, ids: Any, targets: Any) -> Any:
            x = functional.embedding(ids, weight("embed_tokens"))
            for layer in (f"layers.{number}" for number in range(config["num_hidden_layers"])):
                x = x + attention(norm(x, f"{layer}.input_layernorm"), layer)
                y = norm(x, f"{layer}.post_attention_layernorm")
                gate, up = (functional.linear(y, weight(f"{layer}.mlp.{part}_proj")) for part in ("gate", "up"))
                x = x + functional.linear(functional.silu(gate) * up, weight(f"{layer}.mlp.down_proj"))
            return statistics(functional.linear(norm(x, "norm"), weight("embed_tokens")), targets)

    return Llama().eval()


def rotary(config: dict[str, Any], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (max_tokens, width / 2) of the angles of each position, float64."""
    width = config["head_dim"]
    speed = config["rope_parameters"]["rope_theta"] ** (-np.arange(0, width, 2) / width)
    angles = np.outer(np.arange(max_tokens), speed)
    return np.cos(angles), np.sin(angles)


def reference(job: dict[str, Any], precision: str) -> Run:
    import torch

    torch.set_num_threads(job["threads"])
    model = llama(Path(job["model"]), precision, job["max_tokens"])

    def one(ids: list[int]) -> Means:
        row = torch.tensor([ids])
        with torch.inference_mode():
            return means(*(column[0] for column in model(row, row.roll(-1, 1))))

    return lambda texts: [one(ids) for ids in texts]


# --- the contenders ---------------------------------------------------------------------------------------------------


def fluxentropy(job: dict[str, Any], precision: str) -> Run:
    from fluxentropy.models.tokenizers import Encoded
    from fluxentropy.scoring.scorer import Scorer

    scorer = Scorer.from_pretrained(
        job["name"], dtype=precision, max_tokens=job["max_tokens"], threads=job["threads"], device="cpu"
    )

    def run(texts: list[list[int]]) -> list[Means]:
        rows = scorer.score_encoded([Encoded(ids=np.array(ids)) for ids in texts])
        return [(row.entropy_mean, row.varentropy_mean, row.surprisal_mean) for row in rows]  # type: ignore[misc]

    return run


def transformers(job: dict[str, Any], precision: str) -> Run:
    """One text at a time, full logits."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype).eval()

    def one(ids: list[int]) -> Means:
        row = torch.tensor([ids])
        with torch.inference_mode():
            logits = model(input_ids=row, use_cache=False).logits.float()
            return means(*(column[0] for column in statistics(logits, row.roll(-1, 1))))

    return lambda texts: [one(ids) for ids in texts]


def openvino(job: dict[str, Any], precision: str) -> Run:
    """A stream for each core, each with batches of texts of like lengths. int8 has its weights in 8 bits, by NNCF."""
    import torch

    ov = importlib.import_module("openvino")
    example = torch.randint(0, 99, (2, 2, 7)).unbind()
    model = ov.convert_model(llama(Path(job["model"]), "float32", job["max_tokens"]), example_input=example)
    model.reshape({port: ov.PartialShape([-1, -1]) for port in model.inputs})
    if precision == "int8":
        nncf = importlib.import_module("nncf")
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job["threads"], "NUM_STREAMS": job["threads"]}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision != "fp32" and job["bf16"] else "f32"
    settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32 if precision == "int8" else 0
    compiled = ov.Core().compile_model(model, "CPU", settings)
    queue = ov.AsyncInferQueue(compiled, job["threads"])

    def run(texts: list[list[int]]) -> list[Means]:
        found: list[Means] = [(0.0, 0.0, 0.0)] * len(texts)

        def take(request: Any, batch: list[int]) -> None:
            columns = [tensor.data for tensor in request.output_tensors]
            for place, i in enumerate(batch):
                found[i] = means(*(column[place, : len(texts[i])] for column in columns))

        queue.set_callback(take)
        for batch in longest_first(texts, 1024 if precision == "fp32" else 512):  # the best of those tried
            ids = np.zeros((len(batch), len(texts[batch[0]])), np.int64)
            for place, i in enumerate(batch):
                ids[place, : len(texts[i])] = texts[i]
            queue.start_async([ids, np.roll(ids, -1, 1)], batch)
        queue.wait_all()
        return found

    return run


def onnxruntime(job: dict[str, Any], precision: str, at_once: int = 1) -> Run:
    """A text at a time on all cores, or `at_once` texts, the longest first."""
    assert precision == "fp32"
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"] // at_once
    session = ort.InferenceSession(onnx_llama(Path(job["model"]), job["max_tokens"]), options, ["CPUExecutionProvider"])
    pool = ThreadPoolExecutor(at_once)

    def one(ids: list[int]) -> Means:
        row = np.array([ids])  # (1, T)
        feed = {"ids": row, "targets": np.roll(row, -1, 1)}
        feed |= {"last": np.array([len(ids) - 1], np.int32), "length": np.array(len(ids), np.int32)}
        return means(*(column[0] for column in session.run(None, feed)))

    def run(texts: list[list[int]]) -> list[Means]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found = dict(zip(order, pool.map(one, [texts[i] for i in order]), strict=True))
        return [found[i] for i in range(len(texts))]

    return run


def onnx_llama(folder: Path, max_tokens: int) -> bytes:
    """The model as ONNX with the statistics at its end, in ONNX Runtime's own fused operators; for one text."""
    onnx: Any = importlib.import_module("onnx")
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    constants: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Adds one; returns the name of its first output, the others are `/1`, `/2` ... after it."""
        name = f"{kind}{len(nodes)}"
        names = [name, *(f"{name}/{i}" for i in range(1, outputs))]
        nodes.append(onnx.helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return name

    def product(x: str, *names: str) -> str:
        """x times the weights of some layers, side by side."""
        matrix = np.concatenate([weights[f"model.{name}.weight"] for name in names]).T
        return node("MatMul", x, constant(names[0], matrix))

    def norm(x: str, name: str) -> str:
        scale = constant(name, weights[f"model.{name}.weight"])
        return node("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=config["rms_norm_eps"])

    heads: dict[str, Any] = {"num_heads": config["num_attention_heads"], "kv_num_heads": config["num_key_value_heads"]}
    cos, sin = (
        constant(name, table.astype(np.float32))
        for name, table in zip(("cos", "sin"), rotary(config, max_tokens), strict=True)
    )
    x = node("Gather", constant("embeddings", weights["model.embed_tokens.weight"]), "ids")
    for layer in (f"layers.{number}" for number in range(config["num_hidden_layers"])):
        y = norm(x, f"{layer}.input_layernorm")
        y = product(y, *(f"{layer}.self_attn.{part}_proj" for part in "qkv"))
        y = node(
            "GroupQueryAttention", y, "", "", "", "", "last", "length", cos, sin,
            outputs=3, domain="com.microsoft", do_rotary=1, **heads,
        )  # fmt: skip
        x = node("Add", x, product(y, f"{layer}.self_attn.o_proj"))
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate = product(y, f"{layer}.mlp.gate_proj")
        y = node("Mul", node("Mul", gate, node("Sigmoid", gate)), product(y, f"{layer}.mlp.up_proj"))
        x = node("Add", x, product(y, f"{layer}.mlp.down_proj"))
    logits = product(norm(x, "norm"), "embed_tokens")

    axis = constant("axis", np.array([-1]))
    shifted = node("Sub", logits, node("ReduceMax", logits, axis))
    weight = node("Exp", shifted)
    total = node("ReduceSum", weight, axis)
    first = node("Mul", weight, shifted)
    mean = node("Div", node("ReduceSum", first, axis), total)
    square = node("Div", node("ReduceSum", node("Mul", first, shifted), axis), total)
    chosen = node("GatherElements", shifted, node("Unsqueeze", "targets", axis), axis=2)
    log_total = node("Log", total)
    columns = [
        node("Sub", log_total, mean),
        node("Sub", square, node("Mul", mean, mean)),
        node("Sub", log_total, chosen),
    ]
    columns = [node("Squeeze", column, axis) for column in columns]

    kinds, info = onnx.TensorProto, onnx.helper.make_tensor_value_info
    inputs = [info(name, kinds.INT64, [1, "T"]) for name in ("ids", "targets")]
    inputs += [info("last", kinds.INT32, [1]), info("length", kinds.INT32, [])]
    outputs = [info(name, kinds.FLOAT, [1, "T"]) for name in columns]
    graph = onnx.helper.make_graph(nodes, "llama", inputs, outputs, constants)
    versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model: bytes = onnx.helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()
    return model


def main(engine: str, precision: str, path: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    job = json.loads(Path(path).read_text())
    engines: dict[str, Callable[[dict[str, Any], str], Run]] = {
        "reference": reference,
        "fluxentropy": fluxentropy,
        "transformers": transformers,
        "openvino": openvino,
        "onnxruntime": onnxruntime,
        "onnxruntime-cores": lambda job, precision: onnxruntime(job, precision, job["threads"]),
    }
    run = engines[engine](job, precision)
    for line in sys.stdin:
        texts = [job["ids"][i] for i in json.loads(line)]
        started = time.perf_counter()
        found = run(texts)
        seconds = time.perf_counter() - started
        columns = dict(zip(("entropy", "varentropy", "surprisal"), zip(*found, strict=True), strict=True))
        answers.write(json.dumps({"seconds": seconds, **columns}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
