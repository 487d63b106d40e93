"""Which files a corpus reads, streams that come once, and damaged or oversized files."""

import gzip
import os
import random
import resource
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import pytest
import zstandard

import raylens
from raylens.scheduler.cli._options import CORPUS_FORMATS
from raylens.scheduler.corpus import Corpus, CorpusSettings
from raylens.scheduler.corpus.files import ROW_LIMIT
from raylens.scheduler.corpus.settings import Format
from raylens.storage.errors import InputError, UsageError
from raylens.storage.record import ID_LIMIT
from tests.memory import bounded_memory
from tests.permissions import closed, open_folder


def corpus(*sources: Path | str, **settings: Any) -> Corpus:
    return Corpus(CorpusSettings(sources=tuple(map(str, sources)), **settings))


def texts(*sources: Path | str, **settings: Any) -> list[str | None]:
    return [prompt.text for prompt in corpus(*sources, **settings).prompts()]


def refusal(*sources: Path | str, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        corpus(*sources, **settings).scan()
    return str(caught.value)


def test_globs_are_sorted_and_leave_folders_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "deep/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.txt").mkdir()
    assert texts(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert texts(tmp_path / "**" / "[d-z].txt") == ["deep/d.txt"]
    assert texts(tmp_path / "c.md", tmp_path / "?.txt") == ["c.md", "a.txt", "b.txt"]


def test_a_file_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "data[1].txt").write_text("literal")
    (tmp_path / "data1.txt").write_text("matched")
    assert texts(tmp_path / "data[1].txt") == ["literal"]


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    loop = tmp_path / "loop.txt"
    loop.symlink_to(loop)
    (tmp_path / "a.txt").write_text("x")
    assert refusal(tmp_path / "no.jsonl") == f"{tmp_path}/no.jsonl: no such file; check the path"
    assert refusal(tmp_path / "*.csv") == f"{tmp_path}/*.csv: matches no file; check the pattern"
    assert refusal(tmp_path) == f"{tmp_path}: is a directory; name its files, such as {tmp_path}/*.jsonl"
    assert refusal(loop) == f"{loop}: cannot be read (Too many levels of symbolic links); check the path and its permissions"
    assert "a.txt/b: cannot be read (Not a directory)" in refusal(tmp_path / "a.txt" / "b")
    assert ": cannot be read (File name too long)" in refusal("x" * 300)


def test_a_missing_file_is_found_before_any_is_read(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("not json")
    assert "no such file" in refusal(tmp_path / "bad.jsonl", tmp_path / "no.jsonl")


def test_a_file_lost_between_two_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    read = corpus(path)
    read.scan()
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        list(read.prompts())


def test_a_file_without_permission() -> None:
    with open_folder() as folder:
        path = folder / "a.txt"
        path.write_text("x")
        with closed(path):
            assert refusal(path) == f"{path}: cannot be read (Permission denied); check the path and its permissions"


def test_a_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"a\.txt: named more than once"):
        corpus(tmp_path / "*.txt", tmp_path / "a.txt").scan()
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    for other in (tmp_path / "b.txt", tmp_path / ".." / tmp_path.name / "a.txt"):
        with pytest.raises(UsageError, match=r"[ab]\.txt: named more than once"):
            corpus(tmp_path / "a.txt", other).scan()


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    """It is read; what the run keeps of its name is text."""
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("one")
    assert texts(path) == texts(tmp_path / "caf*.txt") == ["one"]
    assert corpus(path).name == f"{tmp_path}/caf\\udce9.txt"


def test_a_file_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and files of --config may name it by ~, as every other path; another user's home must be there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a\n")
    assert [prompt.text for prompt in corpus("~/a.txt").prompts()] == ["a"]
    assert [prompt.text for prompt in corpus("~/*.txt").prompts()] == ["a"]
    with pytest.raises(UsageError, match=r"corpus ~nosuchuser/a\.txt: names no file here"):
        list(corpus("~nosuchuser/a.txt").prompts())


def test_a_text_in_the_place_of_a_file() -> None:
    """Too long for a name, and with a sign of a pattern."""
    assert "cannot be read (File name too long)" in refusal(Path("What is this? " * 30))


def test_other_compressions_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(b"")
    assert ".xz files are not read; decompress it, or compress it as .gz or .zst" in refusal(tmp_path / "a.jsonl.xz")


STDIN = """
from raylens.scheduler.corpus import Corpus, CorpusSettings
corpus = Corpus(CorpusSettings(sources=("-",)))
print(corpus.scan().count, [prompt.text for prompt in corpus.prompts()], [prompt.text for prompt in corpus.prompts()])
"""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'\xef\xbb\xbf \n {"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b"[1]\n[2]\n", ["[1]", "[2]"]),
        (b"a\nb\n\nc", ["a\nb", "c"]),
    ],
)
def test_standard_input_can_be_read_again(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(raylens.__file__).parent.parent), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", STDIN], input=data, env=env, capture_output=True, check=True)
    assert done.stdout.decode() == f"{len(expected)} {expected} {expected}\n"
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []


def through_pipe(path: Path, data: bytes) -> threading.Thread:
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    return writer


def test_a_pipe_can_be_read_by_two_passes_at_once(tmp_path: Path) -> None:
    expected = [f"prompt {number}" for number in range(20_000)]
    writer = through_pipe(tmp_path / "pipe", "\n".join(expected).encode())
    read = corpus(tmp_path / "pipe")
    assert [(one.text, two.text) for one, two in zip(read.prompts(), read.prompts(), strict=True)] == [(x, x) for x in expected]
    writer.join()


def test_a_pipe_of_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "c.parquet")
    writer = through_pipe(tmp_path / "pipe", (tmp_path / "c.parquet").read_bytes())
    assert texts(tmp_path / "pipe", format="parquet") == ["a", "b"]
    writer.join()


def test_large_rows_of_parquet_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A thousand documents of a megabyte are not in memory together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"{number:07d} " * (1 << 17) for number in range(128)]}), tmp_path / "c.parquet")
    with bounded_memory(64 << 20):
        assert sum(len(prompt.text or "") for prompt in corpus(tmp_path / "c.parquet").prompts()) == 128 << 20


def noise(count: int) -> bytes:
    return b"".join(b'{"text": "%x"}\n' % random.Random(number).getrandbits(512) for number in range(count))


@pytest.mark.parametrize("extension", [".jsonl", ".parquet"])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_files_cut_short_or_damaged(tmp_path: Path, extension: str, compression: str) -> None:
    path = tmp_path / f"c{extension}{compression}"
    compress = gzip.compress if compression == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    whole = compress(noise(2000))
    damaged = bytearray(whole)
    damaged[-3] ^= 1  # in the checksum
    for data in (whole[:-1], whole[: len(whole) // 2], whole[:4], bytes(damaged), whole + b"garbage"):
        path.write_bytes(data)
        message = refusal(path)
        assert message.startswith(f"{path}: cannot be decompressed (")
        assert message.endswith("); it is damaged or cut short: copy or compress it again")


def test_no_room_to_unpack_a_compressed_parquet_file(tmp_path: Path) -> None:
    """It is the temporary folder that is at fault, not the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": noise(2000).decode().splitlines()}), tmp_path / "c.parquet")
    path = tmp_path / "c.parquet.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress((tmp_path / "c.parquet").read_bytes()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        message = refusal(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(f"{path}: cannot be read to its end and kept in a temporary file (File too large); make room in ")
    assert corpus(path).scan().count == 2000


def test_a_zstd_window_of_two_gigabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.zst"
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path.write_bytes(compressor.compress(noise(10)) + compressor.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << 28
    assert corpus(path).scan().count == 10


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("extension", [".txt", ".jsonl", ".csv"])
def test_a_line_over_the_limit_is_refused_before_all_of_it_is_read(tmp_path: Path, extension: str, compression: str) -> None:
    path = tmp_path / f"c{extension}{compression}"
    size = 4 * ROW_LIMIT
    if compression == "":
        with path.open("wb") as file:
            file.truncate(size)
    elif compression == ".gz":
        path.write_bytes(gzip.compress(bytes(size), 1))
    else:
        path.write_bytes(zstandard.ZstdCompressor().compress(bytes(size)))

    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert message == f"{path}:1: a line longer than 64 MiB; split it, or check that the format is right"
    assert peak < 2 * ROW_LIMIT


def test_rows_of_many_lines_over_the_limit(tmp_path: Path) -> None:
    line = b"x" * (1 << 20) + b"\n"
    (tmp_path / "c.txt").write_bytes(b"first\n\n" + line * 64)
    (tmp_path / "c.csv").write_bytes(b'text\nfirst\n"' + line * 64)
    assert f"{tmp_path}/c.txt:3: a paragraph longer than 64 MiB" in refusal(tmp_path / "c.txt")
    assert f"{tmp_path}/c.csv:3: a row longer than 64 MiB" in refusal(tmp_path / "c.csv")


def test_rows_just_under_the_limit_are_read(tmp_path: Path) -> None:
    text = "x" * (ROW_LIMIT - 1000)
    (tmp_path / "c.txt").write_text(f"{text}\nnext\n")
    (tmp_path / "c.csv").write_text(f"text,z\n{text},1\n")
    (tmp_path / "c.jsonl").write_text(f'{{"text": "{text}"}}\n')
    for name in ("c.txt", "c.csv", "c.jsonl"):
        first = next(corpus(tmp_path / name).prompts())
        assert first.text == text


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_is_that_many_prompts(limit: int) -> None:
    """Of the first ones."""
    found = [prompt.text for prompt in Corpus(CorpusSettings(texts=("a", "b", "c"), limit=limit)).prompts()]
    assert found == ["a", "b", "c"][:limit]


def test_the_longest_id() -> None:
    """As many characters as the limit says are still an id."""
    (prompt,) = Corpus.from_rows([{"id": "x" * ID_LIMIT, "text": "a"}]).prompts()
    assert len(prompt.id) == ID_LIMIT


def test_paragraphs_are_measured_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small ones are not one that is too long."""
    monkeypatch.setattr("raylens.scheduler.corpus.text.ROW_LIMIT", 10)
    path = tmp_path / "a.txt"
    path.write_text("12345678\n\n" * 3)
    corpus = Corpus(CorpusSettings(sources=(str(path),), format="paragraphs"))
    assert [prompt.text for prompt in corpus.prompts()] == ["12345678"] * 3


def test_the_commands_take_every_format() -> None:
    """Their list is written down beside them, so that --help need not import what reads a corpus."""
    assert get_args(Format) == CORPUS_FORMATS
