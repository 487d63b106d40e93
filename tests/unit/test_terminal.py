"""The grid in a terminal: what fits is shown whole, and nothing in a token reaches the terminal as a command."""

import io

import pytest
from rich.console import Console

from raylens.storage.labels import cell_width
from raylens.storage.plots.grid import grid
from raylens.storage.plots.request import Request
from raylens.storage.plots.scales import exact_rank_scale
from raylens.storage.record import Record
from raylens.storage.terminal import NARROW, WIDE, grid_lines, legend
from tests.builders import make_record, make_vocabulary


def shown(record: Record, width: int | None, step: int = 1, **console: object) -> list[str]:
    picture = grid(record, hostile(), Request("model", "prob", "resid_post", record.positions, layer_step=step))
    out = io.StringIO()
    screen = Console(file=out, highlight=False, **console)  # type: ignore[arg-type]
    for line in grid_lines(picture, width):
        screen.print(line, no_wrap=True, crop=False, overflow="ignore")
    return out.getvalue().splitlines()


def hostile() -> list[bytes | None]:
    """Tokens that would colour, move, ring or turn round a terminal, and wide ones."""
    tokens = list(make_vocabulary())
    nasty = [b"\x1b[31m", b"\x07", "\u202e".encode(), b"\r\n", "東京".encode(), b"[red]", b"\xe0\xb8", "é́".encode()]
    return [nasty[number % len(nasty)] if number % 3 else token for number, token in enumerate(tokens)]


def test_a_pipe_gets_every_position_as_plain_text() -> None:
    """Layers from the last down to the first, all columns, nothing but printable text."""
    record = make_record(tokens=60, layers=tuple(range(6)))
    lines = shown(record, None)
    assert [line.split()[0] for line in lines] == ["next", *["layer"] * 6, "token", "position"]
    assert lines[1].split()[1] == "5"
    assert lines[-1].split()[1:] == [str(position) for position in range(60)]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_gets_the_last_positions_that_fit(width: int) -> None:
    """No line is wider than the screen; cells lie below each other, whatever is in them."""
    record = make_record(tokens=60, layers=tuple(range(6)))
    lines = shown(record, width)
    assert all(cell_width(line) <= width for line in lines)
    positions = [int(word) for word in lines[-1].split()[1:]]
    assert positions == list(range(60 - len(positions), 60))
    assert (width - 10) // (WIDE + 1) <= len(positions) <= (width - 10) // (NARROW + 1)


def test_even_a_tiny_terminal_shows_one_position() -> None:
    """Rather than nothing."""
    assert shown(make_record(tokens=3), 1)[-1].split() == ["position", "2"]


def test_colours_are_those_of_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are coloured, names are not; markup in a token is text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = shown(make_record(tokens=3), 80, force_terminal=True, color_system="truecolor")
    assert "\x1b[38;2;" in lines[1]
    assert lines[1].startswith("   layer 3 \x1b[")
    assert "[red]" in "".join(shown(make_record(tokens=40), None))


def test_every_second_layer_and_the_last() -> None:
    """A step counts from the last layer down."""
    lines = shown(make_record(tokens=2, layers=tuple(range(6))), None, step=2)
    assert [line.split()[1] for line in lines if line.lstrip().startswith("layer")] == ["5", "3", "1"]


def test_a_legend_tells_what_the_colours_mean() -> None:
    """Values in the colours of the scale, and what they are, cut where the screen ends."""
    scale = exact_rank_scale("rank of the token that layer 29 predicts, log scale")
    line = legend(scale, 100)
    assert line.plain == " 1  10  100  ≥1000  rank of the token that layer 29 predicts, log scale"
    grounds = [span.style.split(" on ")[1] for span in line.spans if isinstance(span.style, str) and " on " in span.style]
    assert grounds == ["#fde725", "#35b779", "#31688e", "#440154"]
    assert cell_width(legend(scale, 40).plain) <= 40
