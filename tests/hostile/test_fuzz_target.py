"""The fuzz target is run for a second, so that it does not rot."""

from tests.hostile.fuzz_frame import plain_loop


def test_a_second_of_fuzzing_reaches_every_depth() -> None:
    """Inputs that are no frames, frames without an outcome, and outcomes; for longer: tests/hostile/fuzz_frame.py."""
    results = plain_loop(seconds=1, seed=5)
    assert set(results) == {"outcome", "no outcome", "no frame"}
