"""Headers of GGUF files, against the reader of the package `gguf`."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from modelcopies import write_gguf

from fluxentropy.errors import ModelError
from fluxentropy.gguffile import join_gguf, read_gguf


def test_the_header_is_the_one_that_the_gguf_package_reads(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    reader, found = gguf.GGUFReader(file), read_gguf(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert found.metadata == fields
    assert found.tensors == {tensor.name for tensor in reader.tensors}
    vectors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in found.small}
    assert {name: list(values) for name, values in found.small.items()} == vectors
    assert "output_norm.weight" in vectors


@pytest.mark.parametrize("size", [0, 3, 10, 30, 500, 3000])
def test_a_file_that_is_cut_is_named(tmp_path: Path, size: int) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(write_gguf(tmp_path / "tiny.gguf").read_bytes()[:size])
    with pytest.raises(ModelError, match=r"GGUF file .*cut\.gguf cannot be read: "):
        read_gguf(file)


def test_what_is_no_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!doctype html>" * 10)
    with pytest.raises(ModelError, match=r"page\.gguf cannot be read: it is not a GGUF file"):
        read_gguf(tmp_path / "page.gguf")


def test_files_of_another_alignment_are_joined_with_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 1)
    right = {f"{n}.weight": np.arange(n, n + 5, dtype=np.float32) for n in range(3)}
    for name, values in right.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    join_gguf([tmp_path / "part.gguf"], tmp_path / "whole.gguf")
    found = {tensor.name: tensor.data.tolist() for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors}
    assert found == {name: values.tolist() for name, values in right.items()}


def test_a_file_without_alignment_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "none.gguf", "llama")
    writer.add_uint32("general.alignment", 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"none\.gguf cannot be read"):
        read_gguf(tmp_path / "none.gguf")
