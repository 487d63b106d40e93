"""Segments: each record can be read alone, any zstd tool reads them whole, and damage is found."""

import io
import zlib
from pathlib import Path

import msgspec
import orjson
import pytest
import zstandard

from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import FORMAT, Commit, Entry
from raylens.storage.record import Failure, Record
from raylens.storage.segments import SegmentBuilder, read_line, read_outcome, remove_garbage, segment_path
from tests.builders import make_failure, make_record, make_run, same

WRITER = "0a1b2c3d"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path)[0]


def outcomes() -> list[Record | Failure]:
    return [make_record(2, metadata={"line": "a\nb"}), make_failure(0), make_record(1, dtype="float32", text="日本語 🎉")]


def write(folder: RunFolder, n: int = 1, writer: str = WRITER) -> tuple[Path, list[Entry]]:
    """A segment of ``outcomes()``, and its entries."""
    builder = SegmentBuilder("0123456789abcdef")
    for outcome in outcomes():
        builder.add(outcome)
    commit = builder.write(folder, n, writer)
    return segment_path(folder, commit), commit.entries


def make_commit(segment: str | None) -> Commit:
    return Commit(FORMAT, 1, WRITER, segment, 0, 0, [])


def test_each_outcome_is_read_alone(folder: RunFolder) -> None:
    """Every entry leads to its own record or failure, bit for bit."""
    path, entries = write(folder)
    assert [entry.index for entry in entries] == [2, 0, 1]
    assert [entry.failure for entry in entries] == [None, "model", None]
    assert [entry.tokens for entry in entries] == [4, 0, 4]
    for outcome, entry in zip(outcomes(), entries, strict=True):
        assert same(read_outcome(path, entry), outcome)


def test_entries_tile_the_file(folder: RunFolder) -> None:
    """The entries cover the segment from its first byte to its last, and size and checksum are the file's."""
    builder = SegmentBuilder("0123456789abcdef")
    for outcome in outcomes():
        builder.add(outcome)
    commit = builder.write(folder, 1, WRITER)
    data = segment_path(folder, commit).read_bytes()
    at = 0
    for entry in commit.entries:
        assert entry.offset == at
        at += entry.length
    assert at == len(data) == commit.bytes
    assert zlib.crc32(data) == commit.crc32
    assert len(builder) == len(commit.entries) == 3


def test_the_whole_file_is_json_lines_to_any_zstd_tool(folder: RunFolder) -> None:
    """Streaming decompression of the file, as zstdcat does it, gives the lines one after another."""
    path, entries = write(folder)
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        lines = list(io.BufferedReader(reader))
    assert len(lines) == 3
    assert [orjson.loads(line)["index"] for line in lines] == [2, 0, 1]
    assert lines == [read_line(path, entry) for entry in entries]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)


def test_a_segment_is_never_written_over(folder: RunFolder) -> None:
    """A second segment of the same number and writer is refused, and the first stays as it is."""
    path, _ = write(folder)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write(folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_flipped_bit_is_found(folder: RunFolder, place: int) -> None:
    """A bit that flipped anywhere in a record is one clear error, and its neighbours stay readable."""
    path, entries = write(folder)
    data = bytearray(path.read_bytes())
    hit = entries[1]
    data[hit.offset + place * (hit.length - 1) // 100] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{path.name} at byte {hit.offset}: "):
        read_outcome(path, hit)
    assert same(read_outcome(path, entries[0]), outcomes()[0])
    assert same(read_outcome(path, entries[2]), outcomes()[2])


def test_a_segment_cut_short_is_found(folder: RunFolder) -> None:
    """A record beyond the end of the file is an error that names the file."""
    path, entries = write(folder)
    path.write_bytes(path.read_bytes()[: entries[2].offset + 3])
    with pytest.raises(StoreError, match=rf"{path.name} at byte {entries[2].offset}: damaged record"):
        read_outcome(path, entries[2])
    path.write_bytes(b"")
    with pytest.raises(StoreError, match=rf"{path.name} at byte 0: damaged record"):
        read_outcome(path, entries[0])


def test_a_missing_segment_is_found(folder: RunFolder) -> None:
    """A committed segment that is gone is an error that names the file."""
    path, entries = write(folder)
    path.unlink()
    with pytest.raises(StoreError, match=rf"{path.name}: No such file.*lacks a committed segment"):
        read_outcome(path, entries[0])


def test_bytes_after_a_record_are_found(folder: RunFolder) -> None:
    """An entry that reaches into the next record is not taken for its own."""
    path, entries = write(folder)
    longer = msgspec.structs.replace(entries[0], length=entries[0].length + 1)
    for read in (read_line, read_outcome):
        with pytest.raises(StoreError, match=rf"{path.name} at byte 0: damaged record"):
            read(path, longer)


def test_the_record_of_another_prompt_is_found(folder: RunFolder) -> None:
    """A whole frame in the place of another is not taken for it."""
    path, (two, zero, _) = write(folder)
    misled = msgspec.structs.replace(zero, offset=two.offset, length=two.length)
    for read in (read_line, read_outcome):
        with pytest.raises(StoreError, match=rf"{path.name} at byte 0: holds prompt 2, not prompt 0 as committed"):
            read(path, misled)


def test_a_line_of_another_tool_is_read(folder: RunFolder) -> None:
    """Its keys may come in any order."""
    line = b'{"index": 1, "metadata": {}, "error": {"message": "no", "kind": "model"}, "id": "p"}\n'
    frame = zstandard.compress(line)
    path = folder.records / f"{0:09d}-{WRITER}.jsonl.zst"
    path.write_bytes(frame)
    assert read_line(path, Entry(1, "p", 0, len(frame), 0, "model")) == line


def test_a_record_that_declares_too_much_is_refused(folder: RunFolder) -> None:
    """A size over the limit, or none at all, is refused before memory is asked for."""
    for number, frame in enumerate(
        [
            b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00",
            zstandard.ZstdCompressor(write_content_size=False).compress(b"{}"),
            zstandard.compress(b""),
        ]
    ):
        path = folder.records / f"{number:09d}-{WRITER}.jsonl.zst"
        path.write_bytes(frame)
        with pytest.raises(StoreError, match=rf"{path.name} at byte 0: record declares"):
            read_line(path, Entry(0, "p", 0, len(frame), 4, None))


@pytest.mark.parametrize("line", [b"{}", b"null\n", b'{"id": "p"}', b"\xff\xfe", b"[" * 50_000])
def test_a_line_that_is_no_record_is_named(folder: RunFolder, line: bytes) -> None:
    """JSON that is no record is an error that names file and byte."""
    path = folder.records / f"000000001-{WRITER}.jsonl.zst"
    path.write_bytes(b"." * 10 + zstandard.compress(line))
    with pytest.raises(StoreError, match=rf"{path.name} at byte 10: not a record"):
        read_outcome(path, Entry(0, "p", 10, len(zstandard.compress(line)), 4, None))


@pytest.mark.parametrize("changes", [{"index": 3}, {"id": "another"}, {"failure": "crash"}])
def test_a_record_that_is_not_the_committed_one_is_found(folder: RunFolder, changes: dict[str, object]) -> None:
    """Index, id and failure of the record must be those of the ledger."""
    path, entries = write(folder)
    with pytest.raises(StoreError, match=rf"{path.name} at byte 0: .*as committed"):
        read_outcome(path, msgspec.structs.replace(entries[0], **changes))


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        ".",
        "..",
        "../run.json",
        "/etc/passwd",
        "a/b",
        f"../records/000000001-{WRITER}.jsonl.zst",
        f"./000000001-{WRITER}.jsonl.zst",
        f"000000001-{WRITER}.jsonl.zst/",
        f"000000001-{WRITER}.jsonl.zst\n",
        f"000000001-{WRITER}.jsonl.zst\0",
        f"000000001-{WRITER}\\..jsonl.zst",
        "x" * 5000,
        "run.json",
    ],
)
def test_a_name_that_is_no_segment_is_refused(folder: RunFolder, name: str | None) -> None:
    """A commit leads to a segment in its own records folder and nowhere else."""
    with pytest.raises(StoreError, match="commit 1 names the segment"):
        segment_path(folder, make_commit(name))


def test_the_name_of_a_segment_is_taken(folder: RunFolder) -> None:
    """The name that was written is the name that is read."""
    path, _ = write(folder)
    assert segment_path(folder, make_commit(path.name)) == path


def test_garbage_is_what_no_commit_can_name_any_more(folder: RunFolder) -> None:
    """Unnamed segments up to the number of the take-over go; those of newer writers and strange files stay."""
    named, _ = write(folder, 1)
    lost, _ = write(folder, 1, "ffffffff")
    beaten, _ = write(folder, 2, "ffffffff")
    newer, _ = write(folder, 3, "eeeeeeee")
    strange = folder.records / "notes.txt"
    strange.write_text("mine")
    remove_garbage(folder, 2, {named.name, None})
    assert set(folder.records.iterdir()) == {named, newer, strange}
    assert not lost.exists()
    assert not beaten.exists()
