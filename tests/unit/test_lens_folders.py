"""Folders of tuned lenses: with and without biases, and both files in the digest."""

import json
from pathlib import Path

import torch

from raylens.workers.lenses.interface import Shape
from raylens.workers.lenses.opening import open_lens
from raylens.workers.lenses.source import lens_digest, parse_lens
from tests.lens_files import save_tuned, translators

WIDTH = 8


def mapped(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    lens = open_lens(parse_lens(f"tuned:{folder}"), Shape(2, WIDTH), frozenset({("resid_post", 0)}))
    return lens("resid_post", 0, rows)


def test_translators_without_biases(tmp_path: Path) -> None:
    """They are read where the configuration says that there are none; where it says nothing there are some."""
    made = translators(2, WIDTH)
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    weight, bias = (made[1].get_parameter(name).detach().double() for name in ("weight", "bias"))
    folder = save_tuned(tmp_path / "with", made)
    config = json.loads((folder / "config.json").read_text())
    del config["bias"]
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(mapped(folder, rows).double(), rows + rows.double() @ weight.T + bias, atol=1e-5, rtol=1e-5)
    folder = save_tuned(tmp_path / "without", made, bias=False)
    torch.save({f"{n}.weight": one.get_parameter("weight").detach() for n, one in enumerate(made)}, folder / "params.pt")
    torch.testing.assert_close(mapped(folder, rows).double(), rows + rows.double() @ weight.T, atol=1e-5, rtol=1e-5)


def test_both_files_are_in_the_digest(tmp_path: Path) -> None:
    """A configuration that was changed makes it another lens, as other weights do."""
    source = parse_lens(f"tuned:{save_tuned(tmp_path / 'lens', translators(2, WIDTH))}")
    digests = {lens_digest(source)}
    config = json.loads((tmp_path / "lens" / "config.json").read_text())
    (tmp_path / "lens" / "config.json").write_text(json.dumps({**config, "bias": False}))
    digests.add(lens_digest(source))
    save_tuned(tmp_path / "lens", translators(2, WIDTH, scale=0.5))
    digests.add(lens_digest(source))
    assert len(digests) == 3
