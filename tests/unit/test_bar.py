"""The bar of commands that go through many things."""

import pytest

from raylens.scheduler.cli._bar import with_bar


def test_a_label_is_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal a run's name is shown as it is: it gives rich no orders."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    assert list(with_bar([1, 2], "compacting [/x] [link=https://a.b]c", 2)) == [1, 2]
    assert "compacting [/x] [link=https://a.b]c" in capsys.readouterr().err
