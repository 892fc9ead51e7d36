"""Which files a source names, in what order and under what names; and the messages when it names none."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from fluxentropy.corpus.sources import _walk, find_sources
from fluxentropy.errors import RunError, SourceError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that relative sources start from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(*sources: str) -> list[str]:
    return [item.name for item in find_sources(sources)]


# --- folders, globs, files --------------------------------------------------------------------------------------------


def test_a_folder_gives_known_files_in_the_order_of_their_paths(folder: Path) -> None:
    make("d/b.parquet", "d/a/z.csv.gz", "d/a/y.JSONL", "d/c.txt", "d/e.tsv.zst", "d/f.feather", "d/g.arrow")
    make("d/README.md", "d/.cache/x.jsonl", "d/_tmp/x.jsonl", "d/_x.csv", "d/.y.csv", "d/x.parquet.gz")
    found = find_sources(["d"])
    assert [item.name for item in found] == [
        "a/y.JSONL",
        "a/z.csv.gz",
        "b.parquet",
        "c.txt",
        "e.tsv.zst",
        "f.feather",
        "g.arrow",
    ]
    assert [item.format for item in found] == ["jsonl", "csv", "parquet", "txt", "tsv", "arrow", "arrow"]
    assert found[0].path == Path("d/a/y.JSONL")


def test_json_beside_data_describes_it(folder: Path) -> None:
    make("data/a.jsonl", "data/dataset_info.json", "lines/a.json", "lines/b.json.gz")
    assert names("data") == ["a.jsonl"]
    assert names("data/dataset_info.json") == ["dataset_info.json"]
    make("only/a.json", "only/b.json")
    assert names("only") == ["a.json", "b.json"]


def test_globs(folder: Path) -> None:
    make("d/x/1.jsonl", "d/x/2.csv", "d/y/z/1.jsonl", "d/_skip/1.jsonl", "d/y/notes.md", "d/file[1].jsonl")
    assert names("d/**/*.jsonl") == ["file[1].jsonl", "x/1.jsonl", "y/z/1.jsonl"]
    assert names("d/*/1.jsonl") == ["x/1.jsonl"]
    assert names("d/?/*") == ["x/1.jsonl", "x/2.csv", "y/z/1.jsonl"]
    assert names("d/**") == ["file[1].jsonl", "x/1.jsonl", "x/2.csv", "y/z/1.jsonl"]
    assert names("d/file[1].jsonl") == ["file[1].jsonl"], "an existing file is no pattern"
    assert names(str(folder / "d" / "x*" / "*.csv")) == ["x/2.csv"]
    with pytest.raises(SourceError, match=r"d/\*\.parquet: no data there, but no file at all; known are \.parquet"):
        names("d/*.parquet")


def test_order_of_the_sources_and_each_file_once(folder: Path) -> None:
    make("d/a.jsonl", "d/b.jsonl", "c.csv")
    Path("link.jsonl").symlink_to("d/a.jsonl")
    assert names("c.csv", "d/b.jsonl", "d", "d/*", "./d/../c.csv", "link.jsonl") == ["c.csv", "b.jsonl", "a.jsonl"]


def test_links_are_followed_and_circles_end(folder: Path) -> None:
    make("real/a.jsonl", "d/b.jsonl")
    Path("d/linked").symlink_to(folder / "real")
    Path("real/back").symlink_to(folder / "d")
    Path("d/broken.jsonl").symlink_to("nowhere.jsonl")
    assert names("d") == ["b.jsonl", "broken.jsonl", "linked/a.jsonl"], "a broken link is not dropped in silence"
    assert len(list(_walk(Path("d"), set()))) == 3


def test_equal_names_get_their_folders_in_front(folder: Path) -> None:
    make("x/train/a.jsonl", "y/train/a.jsonl", "y/train/b.jsonl", "x/test/a.jsonl")
    assert names("x/train/a.jsonl", "x/test/a.jsonl") == ["train/a.jsonl", "test/a.jsonl"]
    assert names("x/train", "y/train") == ["x/train/a.jsonl", "y/train/a.jsonl", "b.jsonl"]


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    make("a.jsonl")
    assert names("~/a.jsonl") == ["a.jsonl"]


# --- what other programs write ----------------------------------------------------------------------------------------


def test_a_saved_dataset_is_read_in_its_own_order(folder: Path) -> None:
    data = datasets.Dataset.from_dict({"text": [str(i) for i in range(6)]})
    data.save_to_disk("saved/one", num_shards=3)
    make("saved/one/cache-123.arrow")
    state = json.loads(Path("saved/one/state.json").read_text())
    state["_data_files"].reverse()
    Path("saved/one/state.json").write_text(json.dumps(state))
    expected = [f"data-0000{i}-of-00003.arrow" for i in (2, 1, 0)]
    assert names("saved/one") == expected
    data.save_to_disk("saved/two")
    assert names("saved") == [*(f"one/{name}" for name in expected), "two/data-00000-of-00001.arrow"]


def test_any_other_state_json_is_nothing_special(folder: Path) -> None:
    make("d/a.jsonl")
    for content in ("broken", "[1]", '{"step": 3}'):
        Path("d/state.json").write_text(content)
        assert names("d") == ["a.jsonl"]


def test_a_run_directory_is_its_scores(folder: Path) -> None:
    make("run/input/stdin.jsonl", "run/scores/part-00000.parquet", "run/scores/part-00001.parquet")
    for number in range(2):
        record = {"sha256": hashlib.sha256(b"").hexdigest()}
        Path(f"run/scores/.part-0000{number}.json").write_text(json.dumps(record))
    Path("run/manifest.json").write_text('{"complete": true}')
    assert names("run") == ["part-00000.parquet", "part-00001.parquet"]
    Path("run/manifest.json").write_text('{"complete": false}')
    with pytest.raises(RunError, match="run is not finished"):
        names("run")


# --- standard input ---------------------------------------------------------------------------------------------------


def test_standard_input_is_kept_and_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "a"}\n')))
    spool = folder / "run" / "input" / "stdin.jsonl"
    (item,) = find_sources(["-", "-"], spool=spool)
    assert (item.name, item.path, item.format) == ("stdin", spool, "jsonl")
    assert spool.read_bytes() == b'{"text": "a"}\n'
    assert [path.name for path in spool.parent.iterdir()] == ["stdin.jsonl"]
    monkeypatch.setattr("sys.stdin", None)
    assert find_sources(["-"], spool=spool) == [item]


def test_a_broken_standard_input_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() == 0:
                return super().read(3)
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Broken(b'{"text"')))
    with pytest.raises(KeyboardInterrupt):
        find_sources(["-"], spool=folder / "input" / "stdin.jsonl")
    assert list((folder / "input").iterdir()) == []
    with pytest.raises(UsageError, match="standard input"):
        find_sources(["-"])


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://datasets/openai/gsm8k:test", "openai/gsm8k:test"),
        ("hf://datasets/openai/gsm8k@1a2b/main:train[:10]", "openai/gsm8k@1a2b/main:train[:10]"),
        ("openai/gsm8k/main", "openai/gsm8k/main"),
        ("imdb", "imdb"),
        ("imdb:test", "imdb:test"),
    ],
)
def test_hub_names(folder: Path, source: str, name: str) -> None:
    (item,) = find_sources([source])
    assert (item.path, item.name, item.format) == (None, name, "hub")


@pytest.mark.parametrize(
    "source", ["hf://gpt2", "hf://datasets/a/b/c/d", "hf://datasets/a/b/part.parquet", "", " ", "a\0b"]
)
def test_what_is_no_source(folder: Path, source: str) -> None:
    with pytest.raises(UsageError, match="source|hf://datasets/OWNER/NAME"):
        find_sources([source])


@pytest.mark.parametrize("source", ["review.jsonl", "data/review", "./reviews", "../reviews", "/reviews", "data/x/y"])
def test_paths_are_never_taken_for_hub_names(folder: Path, source: str) -> None:
    make("data/reviews.jsonl")
    with pytest.raises(SourceError, match="no such file or folder"):
        find_sources([source])
    assert find_sources(["data2/review"])[0].format == "hub"


def test_a_missing_path_says_where_it_ends_and_what_is_near(folder: Path) -> None:
    make("data/reviews.jsonl", "data/other.csv")
    with pytest.raises(
        SourceError, match=r"data/review\.jsonl: .* data has no review\.jsonl; did you mean reviews\.jsonl\?"
    ):
        find_sources(["data/review.jsonl"])
    with pytest.raises(
        SourceError, match=r"data/deep/a\.jsonl: .* data has no deep; there are other.csv, reviews.jsonl"
    ):
        find_sources(["data/deep/a.jsonl"])
    with pytest.raises(SourceError, match=r"\. has no dat\.csv; there are data"):
        find_sources(["dat.csv"])


# --- nothing to read --------------------------------------------------------------------------------------------------


def test_unknown_kinds_of_files(folder: Path) -> None:
    make("a.md", "b.docx", "d/a.md", "d/b.md", "d/LICENSE")
    with pytest.raises(SourceError, match=r"a\.md: not a kind of file that can be read; known are \.parquet"):
        find_sources(["a.md"])
    with pytest.raises(SourceError, match=r"d: no data there, but 2 \.md, 1 LICENSE; known are"):
        find_sources(["d"])
    Path("empty").mkdir()
    with pytest.raises(SourceError, match="empty: no data there, but no file at all"):
        find_sources(["empty"])
    os.mkfifo("pipe.jsonl")
    with pytest.raises(SourceError, match=r"pipe\.jsonl"):
        find_sources(["pipe.jsonl"])


def test_folders_that_cannot_be_read_are_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("d/sub/a.jsonl", "d/b.jsonl")
    original = Path.iterdir

    def refuse(path: Path) -> object:
        if path.name == "sub":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SourceError, match=r"d/sub: the folder cannot be read: Permission denied"):
        find_sources(["d"])
    with pytest.raises(SourceError, match="File name too long"):
        find_sources(["x" * 5000])
