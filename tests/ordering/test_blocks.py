"""`fluxentropy bin --tokenize`: every block as brute force cuts it out of the bin's texts; the same bytes; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES
from scoredruns import write_run
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fluxentropy.cli.app import main
from fluxentropy.models.tokenizers import byte_tokenizer
from fluxentropy.ordering import blocks
from fluxentropy.ordering import blocks as packing
from fluxentropy.ordering.blocks import Packer, block_schema
from fluxentropy.runs.files import sha256_file
from tests.models.test_tokenizers import save_tokenizer

EDGES = [1.0, 2.0, 3.0]  # bins of 15, 0, 44 and 1 texts
Capture = pytest.CaptureFixture[str]


def write_corpus(folder: Path, *, files: int = 3) -> Path:
    """60 scored texts and 2 without a score; among them null and empty ones, one that is very long, and words."""
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in rng.integers(0, 70_000, 400)]
    texts: list[str | None] = [" ".join(rng.choice([*SENTENCES, *words], 5)) for _ in range(62)]
    texts[3] = texts[20] = None
    texts[4] = texts[21] = texts[22] = ""
    texts[30] = " ".join(rng.choice([*SENTENCES, *words], 3000))
    texts[59] = "few"
    scores: list[float | None] = [0.5] * 15 + [2.5] * 44 + [9.0] + [None] * 2
    table = pa.table({"id": [str(row) for row in range(62)], "text": texts, "entropy_mean": scores})
    folder.mkdir(parents=True)
    for number in range(files):
        start, stop = (62 * place // files for place in (number, number + 1))
        pq.write_table(table.slice(start, stop - start), folder / f"part-{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus `in`, a byte-pair encoding `bpe` that adds a BOS, and `words`, which needs uint32."""
    folder = tmp_path_factory.mktemp("places")
    write_corpus(folder / "in")
    save_tokenizer(folder / "bpe", bos=True)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(70_000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder / "words")
    return folder


def command(places: Path, out: Path, *flags: object) -> list[str]:
    return ["bin", str(places / "in"), f"--edges={','.join(map(str, EDGES))}", "--out", str(out), *map(str, flags)]


def make(places: Path, out: Path, *flags: object) -> Path:
    assert main(command(places, out, *flags)) == 0
    return out


def error(capsys: Capture, argv: list[str]) -> str:
    capsys.readouterr()
    assert main([*argv, "--json"]) in (1, 2)
    captured = capsys.readouterr()
    assert "unexpected" not in captured.err
    return str(json.loads(captured.out)["error"])


def snapshot(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in LEAVE)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


CONFIG = "config.resolved.yaml"
LEAVE = (".lock", CONFIG, ".records.json")  # they say how it was made


def batches(folder: Path) -> list[pa.RecordBatch]:
    files = [ipc.open_file(path) for path in sorted(folder.glob("part-*.arrow"))]
    return [file.get_batch(place) for file in files for place in range(file.num_record_batches)]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for batch in batches(folder) for row in batch.to_pylist()]


def stream(out: Path, number: int, tokenizer: Any) -> tuple[list[int], list[int], list[str]]:
    """The tokens of a bin by brute force, the document of each, and the bin's texts."""
    ids: list[int] = []
    documents: list[int] = []
    texts = [row["text"] or "" for row in rows(out / "data" / f"bin={number:02}")]
    for row, text in enumerate(texts):
        if found := tokenizer(text, add_special_tokens=False).input_ids:
            ids += [*found, tokenizer.eos_token_id]
            documents += [row] * (len(found) + 1)
    return ids, documents, texts


# --- what is in the blocks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bpe", "words", "bytes"])
@pytest.mark.parametrize("length", [16, 1000])
def test_every_block_by_brute_force(name: str, length: int, places: Path, tmp_path: Path) -> None:
    chosen = "bytes" if name == "bytes" else places / name
    out = make(places, tmp_path / "out", "--tokenize", chosen, "--block-length", length)
    tokenizer = byte_tokenizer() if name == "bytes" else AutoTokenizer.from_pretrained(chosen)
    record = json.loads((out / "_blocks" / "blocks.json").read_text())
    counts: dict[str, list[int]] = {"blocks": [], "tokens": [], "documents": [], "left_over": []}
    empty = []
    for number in range(4):
        ids, documents, texts = stream(out, number, tokenizer)
        folder = out / "_blocks" / "data" / f"bin={number:02}"
        expected = cut(ids, documents, length, number)
        assert rows(folder) == expected
        facts = json.loads((folder / ".manifest.json").read_text())
        assert facts["rows"] == len(expected)
        assert [file["sha256"] for file in facts["files"]] == [sha256_file(folder / "part-00000.arrow")]
        empty.append(facts["empty"])
        for key, value in zip(counts, (len(expected), len(expected) * length, len(texts), 0), strict=True):
            counts[key].append(value)
        counts["left_over"][-1] = len(ids) - len(expected) * length
    assert {key: record[key] for key in counts} == counts
    assert counts["documents"] == [15, 0, 44, 1]
    assert (empty, counts["blocks"][1]) == ([2, 0, 3, 0], 0)
    assert (counts["blocks"][3], counts["blocks"][2] > 2) == (0, True)  # a text runs over many blocks, or fills none
    assert (record["length"], record["dtype"]) == (length, "uint32" if name == "words" else "uint16")
    assert (record["vocabulary"], record["eos_token_id"]) == (len(tokenizer), tokenizer.eos_token_id)
    assert record["tokenizer"]["name"] == name
    assert record["bins_fingerprint"] == json.loads((out / "bins.json").read_text())["fingerprint"]
    saved = AutoTokenizer.from_pretrained(out / "_blocks" / "tokenizer")
    assert [saved(text).input_ids for text in SENTENCES] == [tokenizer(text).input_ids for text in SENTENCES]
    assert saved.eos_token_id == tokenizer.eos_token_id


def test_files_are_read_without_a_copy_in_batches_of_256_blocks(places: Path, tmp_path: Path) -> None:
    flags = ["--tokenize", "bytes", "--block-length", 10, "--shard-size", "10KB"]
    folder = make(places, tmp_path / "out", *flags) / "_blocks" / "data" / "bin=02"
    files = sorted(folder.glob("part-*.arrow"))
    sizes = [batch.num_rows for batch in batches(folder)]
    assert len(files) > 2
    assert (set(sizes[:-1]), 0 < sizes[-1] < 256) == ({256}, True)
    with pa.memory_map(str(files[0])) as source:
        mapped = source.read_buffer()
        column = ipc.open_file(mapped).get_batch(0).column("input_ids")
        place = column.values.buffers()[1].address - mapped.address
        assert 0 <= place < mapped.size
        assert column.type == pa.list_(pa.uint16(), 11)


def test_the_same_bytes_however_they_are_made(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--tokenize", places / "bpe", "--block-length", 8, "--shard-size", "10KB"]
    expected = snapshot(make(places, tmp_path / "out", *flags))
    assert sum(name.startswith("_blocks/data/bin=02/part") for name in expected) > 1
    assert snapshot(make(places, tmp_path / "workers", *flags, "--workers", 2, "--memory", "16MiB")) == expected
    monkeypatch.setattr(blocks, "TEXTS", 7)
    monkeypatch.setattr(blocks, "CHARS", 100)
    assert snapshot(make(places, tmp_path / "small", *flags)) == expected


@pytest.mark.parametrize("column", ["bin", "Text"])
def test_the_column_of_the_texts(column: str, places: Path, tmp_path: Path) -> None:
    """A run says which it is, one called bin has another name in the shards, and case does not matter."""
    run = write_run(tmp_path / "run", [1.0, 2.0], text_field="bin" if column == "bin" else "text")
    for part in run.glob("scores/*.parquet"):
        table = pq.read_table(part)
        names = [column if name == "text" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), part)
        record = part.with_name(f".{part.stem}.json")
        facts = json.loads(record.read_text()) | {"bytes": part.stat().st_size, "sha256": sha256_file(part)}
        record.write_text(json.dumps(facts))
    argv = ["bin", str(run), "--edges", "100", "--order", "source", "--tokenize", "bytes", "--block-length", "4"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    ids = [*b"text of id-0", 256, *b"text of id-1", 256]
    found = [row["input_ids"] for row in rows(tmp_path / "out" / "_blocks" / "data" / "bin=00")]
    assert found == [ids[first : first + 5] for first in range(0, 24, 4)]


def test_readers_of_the_bins_do_not_see_blocks(places: Path, tmp_path: Path) -> None:
    import polars
    from datasets import load_dataset

    out = make(places, tmp_path / "out", "--tokenize", "bytes", "--block-length", 16)
    assert sorted(polars.scan_ipc(f"{out}/data/bin=*/*.arrow").collect()["id"].to_list(), key=int) == [
        *map(str, range(60))
    ]
    found = ds.dataset(out / "data", format="ipc", partitioning="hive")
    assert found.count_rows() == 60
    blocks = ds.dataset(out / "_blocks" / "data", format="ipc", partitioning="hive")
    assert blocks.count_rows() == sum(json.loads((out / "_blocks" / "blocks.json").read_text())["blocks"])
    read = load_dataset("arrow", data_files=f"{out}/data/bin=*/*.arrow", cache_dir=str(tmp_path), split="train")
    assert len(read) == 60
    packed = load_dataset(
        "arrow", data_files=f"{out}/_blocks/data/bin=*/*.arrow", cache_dir=str(tmp_path), split="train"
    )
    assert packed[0]["input_ids"] == rows(out / "_blocks" / "data" / "bin=00")[0]["input_ids"]


# --- a folder that has bins, or blocks --------------------------------------------------------------------------------


def test_blocks_join_finished_bins_and_stay(places: Path, tmp_path: Path) -> None:
    out = make(places, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name not in LEAVE}
    flags = ["--tokenize", "bytes", "--block-length", 16]
    make(places, out, *flags)
    whole = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name not in LEAVE}
    assert {path: time for path, time in whole.items() if "_blocks" not in path.parts} == before
    assert len(whole) > len(before)
    config = (out / CONFIG).read_bytes()
    make(places, out, *flags)
    make(places, out)  # the record of how blocks were made stays, too
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert (out / CONFIG).read_bytes() == config


def test_other_blocks_are_refused(places: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = ["--tokenize", "bytes", "--block-length", 16]
    out = make(places, tmp_path / "out", *flags)
    before = snapshot(out), (out / CONFIG).read_bytes()
    found = error(capsys, command(places, out, "--tokenize", places / "bpe", "--block-length", 16))
    assert "tokenizer is 'bytes' there and 'bpe' here. Remove" in found
    assert "block_length is 16 there and 1024 here" in error(capsys, command(places, out, "--tokenize", "bytes"))
    (out / "_blocks" / "blocks.json").rename(tmp_path / "kept")  # as if a run had been killed
    unfinished = error(capsys, command(places, out, "--tokenize", places / "bpe", "--block-length", 16))
    assert "their tokenizer is not this bpe" in unfinished
    (tmp_path / "kept").rename(out / "_blocks" / "blocks.json")
    assert (snapshot(out), (out / CONFIG).read_bytes()) == before
    make(places, out, "--tokenize", places / "bpe", "--overwrite")
    other = snapshot(out)
    shutil.rmtree(out / "_blocks")
    make(places, out, "--tokenize", places / "bpe")
    assert snapshot(out) == other
    assert not (make(places, out, "--overwrite") / "_blocks").exists()


def test_a_tokenizer_that_changed_in_its_place(places: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(places / "bpe", tmp_path / "bpe")
    flags = ["--tokenize", tmp_path / "bpe", "--block-length", 16]
    out = make(places, tmp_path / "out", *flags)
    before = snapshot(out)
    shutil.copytree(places / "words", tmp_path / "bpe", dirs_exist_ok=True)
    assert "their tokenizer is not this bpe" in error(capsys, command(places, out, *flags))
    flip(out / "_blocks" / "data" / "bin=00" / SHARD)
    assert main(["verify", str(out), "--repair"]) == 1
    assert "not repaired" in capsys.readouterr().out
    flip(out / "_blocks" / "data" / "bin=00" / SHARD)
    assert snapshot(out) == before


def test_what_cannot_be_tokenized(places: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert "has no end-of-text token" in error(
        capsys, command(places, out, "--tokenize", save_tokenizer(tmp_path / "no", eos=None))
    )
    assert "--tokenize is empty" in error(capsys, command(places, out, "--tokenize", ""))
    assert "--block-length 0" in error(capsys, command(places, out, "--tokenize", "bytes", "--block-length", 0))
    assert not out.exists() or not list(out.glob("data/bin=*"))
    for number, texts in enumerate(({"texts": ["a"]}, {"text": [1]})):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"entropy_mean": [1.0], **texts}), tmp_path / "in" / "a.parquet")
        found = error(capsys, command(tmp_path, out, "--tokenize", "bytes"))
        assert ("no column text with texts in", "the column text of")[number] in found
        make(tmp_path, tmp_path / f"out{number}")


def test_a_damaged_bin_is_not_packed(places: Path, tmp_path: Path, capsys: Capture) -> None:
    out = make(places, tmp_path / "out")
    flip(out / "data" / "bin=02" / SHARD)
    found = error(capsys, command(places, out, "--tokenize", "bytes"))
    assert f"{out / 'data' / 'bin=02' / SHARD}: it is damaged" in found
    assert main(["verify", str(out), "--repair"]) == 0  # the bin, and then the blocks that were asked for
    assert snapshot(out) == snapshot(make(places, tmp_path / "other", "--tokenize", "bytes"))


def test_the_same_tokenizer_by_another_name(places: Path, tmp_path: Path) -> None:
    out = make(places, tmp_path / "out", "--tokenize", "bytes")
    before = snapshot(out)
    make(places, out, "--tokenize", out / "_blocks" / "tokenizer")
    assert snapshot(out) == before


def test_words_for_people(places: Path, tmp_path: Path, capsys: Capture) -> None:
    out = make(places, tmp_path / "out", "--tokenize", "bytes", "--block-length", 1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "  bin=03  1 rows, 3 tokens, 0 blocks  entropy_mean > 3"
    total = sum(json.loads((out / "_blocks" / "blocks.json").read_text())["blocks"])
    assert lines[6].startswith(f"{total:,} blocks of 1,000 tokens by bytes, ")


# --- verify -----------------------------------------------------------------------------------------------------------

SHARD = "part-00000.arrow"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def disguise(folder: Path) -> None:
    """Blocks that look as they should, and are those of another bin."""
    table = ipc.open_file(folder / SHARD).read_all()
    with pa.ipc.new_file(str(folder / SHARD), table.schema) as writer:
        writer.write_table(table.set_column(3, table.schema.field(3), pa.array([1] * len(table), pa.int32())))
    facts = json.loads((folder / ".manifest.json").read_text())
    facts["files"][0] |= {"bytes": (folder / SHARD).stat().st_size, "sha256": sha256_file(folder / SHARD)}
    (folder / ".manifest.json").write_text(json.dumps(facts))


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a flipped bit": (lambda b: flip(b / "data" / "bin=02" / SHARD), [f"data/bin=02/{SHARD}"]),
    "a lost file": (lambda b: (b / "data" / "bin=02" / SHARD).unlink(), [f"data/bin=02/{SHARD}"]),
    "a lost manifest": (lambda b: (b / "data" / "bin=00" / ".manifest.json").unlink(), ["data/bin=00/.manifest.json"]),
    "a lost bin": (lambda b: shutil.rmtree(b / "data" / "bin=01"), ["data/bin=01"]),
    "a foreign bin": (lambda b: shutil.copytree(b / "data" / "bin=01", b / "data" / "bin=07"), ["data/bin=07"]),
    "a foreign file": (
        lambda b: shutil.copy(b / "data" / "bin=00" / SHARD, b / "data" / "bin=00" / "part-00009.arrow"),
        ["data/bin=00/part-00009.arrow"],
    ),
    "another bin's number": (lambda b: disguise(b / "data" / "bin=02"), [f"data/bin=02/{SHARD}"]),
    "wrong counts": (lambda b: edit(b / "data" / "bin=02" / ".manifest.json", left_over=77), ["blocks.json"]),
    "wrong documents": (
        lambda b: edit(b / "data" / "bin=02" / ".manifest.json", documents=1),
        ["data/bin=02/.manifest.json", "blocks.json"],
    ),
    "no blocks.json": (lambda b: (b / "blocks.json").unlink(), ["blocks.json"]),
    "an edited blocks.json": (lambda b: edit(b / "blocks.json", eos_token_id=3), ["blocks.json"]),
    "another tokenizer": (lambda b: flip(b / "tokenizer" / "tokenizer.json"), ["tokenizer"]),
    "no tokenizer": (lambda b: shutil.rmtree(b / "tokenizer"), ["tokenizer"]),
    "no blocks": (shutil.rmtree, ["."]),
}


@pytest.fixture(scope="module")
def made(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(places, tmp_path_factory.mktemp("made") / "out", "--tokenize", places / "bpe", "--block-length", 16)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_just_that_is_made_again(damage: str, made: Path, tmp_path: Path, capsys: Capture) -> None:
    before = snapshot(made)
    out = tmp_path / "out"
    shutil.copytree(made, out)
    do, names = DAMAGE[damage]
    do(out / "_blocks")
    times = {path: path.stat().st_mtime_ns for path in (out / "_blocks").rglob("*.arrow")}
    assert main(["verify", str(out), "--json"]) == 1
    found = [Path(one["path"]) for one in json.loads(capsys.readouterr().out)["problems"]]
    assert sorted(path.relative_to(out / "_blocks").as_posix() for path in found) == sorted(names)
    assert main(["verify", str(out), "--repair"]) == 0
    assert snapshot(out) == before
    touched = {
        path.parent.relative_to(out / "_blocks").as_posix()
        for path, time in times.items()
        if not path.exists() or path.stat().st_mtime_ns != time
    }
    assert touched <= ({"data/bin=02"} if damage == "wrong counts" else {"/".join(n.split("/")[:2]) for n in names})


def test_whole_blocks_are_proved(made: Path, capsys: Capture) -> None:
    assert main(["verify", str(made), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    total = sum(json.loads((made / "_blocks" / "blocks.json").read_text())["blocks"])
    assert notes[-1] == f"{made}: {total:,} blocks of 16 tokens in 4 files"


# --- Packed tokens, compared with blocks that are cut one by one out of the whole stream ---


def cut(stream: list[int], documents: list[int], length: int, number: int) -> list[dict[str, Any]]:
    """Blocks by definition: tokens i L to i L + L of the stream, each with its document."""
    blocks = []
    for first in range(0, len(stream) - length, length):
        places = range(first, first + length + 1)
        starts = [0] + [place - first for place in places[1:] if documents[place] != documents[place - 1]]
        blocks.append(
            {
                "input_ids": [stream[place] for place in places],
                "starts": starts,
                "documents": [documents[first + start] for start in starts],
                "bin": number,
            }
        )
    return blocks


@pytest.mark.parametrize("seed", range(8))
def test_blocks_of_any_stream_added_in_any_pieces(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BATCH_BLOCKS", 3)
    rng = np.random.default_rng(seed)
    for length in range(1, 12):
        packer, batches = Packer(block_schema(70_000, length), bin=seed), []
        stream: list[int] = []
        documents: list[int] = []
        rows = 0
        for _ in range(rng.integers(1, 9)):
            sizes = rng.integers(0, 3 * length, rng.integers(0, 6)) * rng.integers(0, 2)
            ids = rng.integers(0, 70_000, sizes.sum())
            packer.add(ids, sizes)
            stream += ids.tolist()
            documents += np.repeat(np.arange(rows, rows + len(sizes)), sizes).tolist()
            rows += len(sizes)
            batches += packer.batches()
            assert all(batch.num_rows == 3 for batch in batches)
        batches += packer.batches(last=True)
        found = [block for batch in batches for block in batch.to_pylist()]
        assert found == cut(stream, documents, length, seed)
        assert (packer.rows, packer.blocks, packer.tokens) == (rows, len(found), len(stream))
        assert packer.left_over + len(found) * length == len(stream)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_the_largest_id_fits(vocabulary: int, dtype: str) -> None:
    schema = block_schema(vocabulary, 2)
    packer = Packer(schema, bin=0)
    packer.add(np.array([1, vocabulary - 1, 0], np.uint32), np.array([3]))
    (batch,) = packer.batches(last=True)
    assert str(schema.field("input_ids").type.value_type) == dtype
    assert batch.column("input_ids").to_pylist() == [[1, vocabulary - 1, 0]]
