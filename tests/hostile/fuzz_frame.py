"""A fuzz target for everything that decodes bytes of the stream: ``python -m tests.hostile.fuzz_frame --seconds 60``.

With atheris installed it is guided by coverage (other options go to libFuzzer, such as a folder of inputs that it keeps);
without it, real frames and payloads are mutated at random. An input that is neither refused by FrameError nor a sound outcome
ends it with a traceback and is written to a file ``crash-...``, which ``--input FILE`` tries again.
"""

import argparse
import contextlib
import hashlib
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["raylens"]) if atheris is not None else contextlib.nullcontext():
    from raylens.storage.payload import encode_payload
    from tests.builders import make_frames
    from tests.hostile.test_hostile_frames import PROMPTS, RUN, Forger, decode, is_sound, outcome_of
    from tests.wire import make_frame

#: First byte of an input: what follows is a whole frame; or a prompt's index in a byte and a payload, which is put into a
#: valid frame, so that a fuzzer need not guess a checksum.
FRAME, PAYLOAD = b"f", b"p"
#: Kibibytes that all inputs together may add to the process.
GROWTH = 256 << 10


def one_input(data: bytes) -> str:
    """Decode one input as the writer would; what became of it.

    Raises:
        AssertionError: a decoded outcome breaks a rule. Any other error that gets out is a bug too.
    """
    entry = data[1:]
    if data[:1] == PAYLOAD and len(data) > 1:
        entry = make_frame(RUN, data[2:], index=data[1] % PROMPTS)
    frame, outcome = decode(entry)
    if outcome is not None:
        assert is_sound(outcome)
        return "outcome"
    return "no frame" if frame is None else "no outcome"


def corpus() -> Iterator[bytes]:
    """Real frames, real payloads and forged entries to begin with."""
    forger = Forger(1)
    for index in range(PROMPTS):
        outcome = outcome_of(index)
        yield from (FRAME + frame for frame in make_frames(outcome, RUN, b"8 bytes."))
        yield PAYLOAD + bytes([index]) + encode_payload(outcome)
        yield FRAME + forger.entry(index)


def mutated(chance: random.Random, pool: list[bytes]) -> bytes:
    """A member of the pool after one to eight random edits."""
    data = bytearray(chance.choice(pool))
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        place = chance.randrange(1, len(data) + 1)
        way = chance.randrange(6)
        if way == 0:
            data[place : place + 1] = chance.randbytes(1)
        elif way == 1:
            data[place : place + 1] = chance.choice([b"\x00", b"\xff", b"\x80", b"\x7f", b"\xc1", b"\xdd\xff\xff\xff\xff"])
        elif way == 2:
            del data[place : place + chance.choice([1, 4, 64])]
        elif way == 3:
            data[place:place] = chance.randbytes(chance.choice([1, 4, 64]))
        elif way == 4:  # a piece of another
            other = chance.choice(pool)
            start = chance.randrange(len(other))
            data[place : place + 16] = other[start : start + chance.choice([4, 16, 256])]
        else:  # a number somewhere, as large as it gets
            data[place : place + 8] = chance.choice([0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]).to_bytes(8, "little")
    return bytes(data)


def plain_loop(seconds: float, seed: int) -> Counter[str]:
    """Mutate until the time is over; how many inputs came to what."""
    chance, pool, results = random.Random(seed), list(corpus()), Counter[str]()
    for data in pool:
        results[guarded(data)] += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance, pool)
        result = guarded(data)
        results[result] += 1
        if result == "outcome" and len(pool) < 1000:  # a change that is still valid is a good place to go on from
            pool.append(data)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < GROWTH, f"memory grew by {grown} KiB"
    return results


def guarded(data: bytes) -> str:
    """As ``one_input``, but an input that gets through is kept in a file."""
    try:
        return one_input(data)
    except BaseException:
        path = Path(f"crash-{hashlib.sha256(data).hexdigest()[:16]}")
        path.write_bytes(data)
        print(f"see {path}", file=sys.stderr)
        raise


def guided_loop(seconds: float, rest: list[str]) -> None:
    """By atheris, which ends the process itself."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(corpus()):
            (Path(folder) / str(number)).write_bytes(data)
        atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-rss_limit_mb=1024", *rest, folder], one_input)
        atheris.Fuzz()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=Path, help="try one input again")
    options, rest = parser.parse_known_args()
    if options.input is not None:
        print(one_input(options.input.read_bytes()))
        return
    if atheris is not None:
        guided_loop(options.seconds, rest)
    results = plain_loop(options.seconds, options.seed)
    print(f"{results.total():,} inputs: " + ", ".join(f"{count:,} {name}" for name, count in results.most_common()))


if __name__ == "__main__":
    main()
