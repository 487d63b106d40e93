"""Hooks that hand over chosen rows of the residual stream while the model runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raylens.workers.blocks import first_tensor, flat_rows, input_tensor
from raylens.workers.lenses.interface import Place


@dataclass(frozen=True, slots=True)
class Site:
    """One hook: a module of a block, whether its input or output is read, and the factor on it.

    Attributes:
        split: where a place is several taps in one (heads.py): from its rows to the name and [N, D] rows of each.
    """

    module: nn.Module
    name: str
    reads_input: bool = False
    scale: float = 1.0
    split: Callable[[Tensor], Iterable[tuple[str, Tensor]]] | None = None

    def __str__(self) -> str:
        side = "input of" if self.reads_input else "output of"
        scale = "" if self.scale == 1.0 else f" x {self.scale:g}"
        return f"{side} {self.name or 'the block'}{scale}"


#: The hooks of some places.
Sites = Mapping[Place, Site]
#: Receives (tap, layer, rows [N, D]); the rows are copies.
Sink = Callable[[str, int, Tensor], None]
Rows = Tensor | Callable[[], Tensor]


@contextmanager
def capture(sites: Sites, rows: Rows, sink: Sink) -> Iterator[None]:
    """While open, each forward pass gives ``sink`` the rows of every site.

    Args:
        rows: [N] int64 numbers of rows in the flattened [B*T, D] hidden states, or what gives them for the pass that is going.
        sink: called from inside the hooks, in the order in which the model computes.
    """
    with ExitStack() as hooks:
        for (tap, layer), site in sites.items():
            hooks.callback(_hook(tap, layer, site, rows, sink))
        yield


def captured(module: nn.Module, ids: Tensor, sites: Sites) -> dict[Place, Tensor]:
    """[T, D] of every site, in the order in which the model computes them, from one pass over one prompt, [1, T] ids."""
    found: dict[Place, Tensor] = {}

    def keep(tap: str, layer: int, rows: Tensor) -> None:
        found[tap, layer] = rows

    with capture(sites, torch.arange(ids.shape[1], device=ids.device), keep):
        module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return found


def _hook(tap: str, layer: int, site: Site, rows: Rows, sink: Sink) -> Callable[[], None]:
    def take(hidden: Tensor | None) -> None:
        if hidden is None:
            raise RuntimeError(f"{tap} of layer {layer}: module {site.name} gave no hidden state")
        # index_select copies, which also guards against modules that change their output in place
        wanted = rows() if callable(rows) else rows
        chosen = flat_rows(hidden).index_select(0, wanted.to(hidden.device))
        if site.split is not None:
            for part, written in site.split(chosen):
                sink(part, layer, written)
        else:
            sink(tap, layer, chosen if site.scale == 1.0 else chosen * site.scale)

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        take(input_tensor(args, kwargs))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        take(first_tensor(output))

    if site.reads_input:
        return site.module.register_forward_pre_hook(before, with_kwargs=True).remove
    return site.module.register_forward_hook(after).remove
