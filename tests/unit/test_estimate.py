"""What a dry run prints: each figure at its name, and in words what is not known."""

import msgspec

from raylens.scheduler.dry_run.advice import Advice
from raylens.scheduler.dry_run.costs import Range
from raylens.scheduler.dry_run.estimate import Estimate

FOUND = Estimate(
    prompts=12_000,
    failures=1_500,
    tokens=340_000,
    places=5_600_000,
    shards=789,
    actors=2,
    store_bytes=2_340_000_000,
    model_bytes=270_000_000,
    host_bytes=1_250_000_000,
    gpu_bytes=0,
    server_bytes=268_400_000,
    start_seconds=12.0,
    work_seconds=Range(600.0, 700.0, 800.0),
    seconds=Range(3_700.0, 4_000.0, 4_500.0),
    measured="64 prompts in 9.5 s",
    advice=[Advice("--positions last", 560_000, 234_000_000, 400.0)],
)


def test_for_people() -> None:
    """A line for each thing, with the bytes and times as people read them, and then what is cheaper."""
    assert FOUND.lines() == [
        "prompts  12,000 (1,500 will fail: empty, too long or unreadable)",
        "tokens   340,000",
        "places   5,600,000 (tap, layer, position)",
        "shards   789, for 2 actors",
        "store    about 2.34 GB",
        "memory   about 1.25 GB for each actor, no GPU memory; weights 270.0 MB; results in the server at most 268.4 MB",
        "time     about 1:06:40 (1:01:40 to 1:15:00), of which 0:12 to start and finish",
        "measured 64 prompts in 9.5 s",
        "cheaper  --positions last: 10% of the places, 2.34 GB -> 234.0 MB, about 1:06:40 -> 6:40",
    ]


def test_where_something_is_not_known() -> None:
    """Actors on other machines have another speed and other GPUs; of a GPU that was measured its memory is told."""
    there = msgspec.structs.replace(FOUND, failures=0, actors=1, gpu_bytes=None, seconds=None)
    lines = there.lines()
    assert lines[0] == "prompts  12,000"
    assert lines[3] == "shards   789, for 1 actor"
    assert "1.25 GB for each actor, GPU memory not known here; weights" in lines[5]
    assert lines[6].endswith("on other machines; as measured here, one actor would take about 11:40 (10:00 to 13:20)")
    assert lines[8] == "cheaper  --positions last: 10% of the places, 2.34 GB -> 234.0 MB"
    assert (
        "1.25 GB for each actor, 3.00 GB of GPU memory; weights" in msgspec.structs.replace(FOUND, gpu_bytes=3 * 10**9).lines()[5]
    )
