"""Whether an intervention fits a model, as far as configuration and tokenizer tell, before any weights are loaded."""

from collections.abc import Callable

from raylens.storage.errors import UsageError
from raylens.storage.layers import select_layers
from raylens.workers.interventions.edits import Add, Edit


def check_edits(edits: tuple[Edit, ...], ids_of: Callable[[str], list[int]], layers: int, width: int, longest: int) -> None:
    """Refuse edits of what the model does not have.

    Args:
        edits: what is asked.
        ids_of: text -> token ids.
        layers, width: of the model.
        longest: its longest input in tokens.

    Raises:
        UsageError: naming the place in the file.
    """
    for number, edit in enumerate(edits):
        place = f"--intervene: edits[{number}]"
        try:
            select_layers(edit.layers, layers)
        except UsageError as error:
            raise UsageError(f"{place}.layers: {str(error).removeprefix('--layers ')}") from error
        source = edit.source
        if source is None:
            continue
        if source.layer is not None and not 0 <= source.layer < layers:
            raise UsageError(f"{place}: layer {source.layer} of a prompt: the model has layers 0 to {layers - 1}")
        if isinstance(source, Add) and source.values is not None and len(source.values) != width:
            raise UsageError(f"{place}.add: a vector of {len(source.values)} numbers; the model's residual has {width}")
        for prompt in edit.prompts:
            _check_prompt(f"{place}: prompt {prompt[:60]!r}", len(ids_of(prompt)), source.position, longest)


def _check_prompt(what: str, tokens: int, position: int | str, longest: int) -> None:
    if not tokens:
        raise UsageError(f"{what} has no tokens; give a text")
    if tokens > longest:
        raise UsageError(f"{what} has {tokens:,} tokens, and the model's limit is {longest:,}; give a shorter one")
    if isinstance(position, int) and not -tokens <= position < tokens:
        raise UsageError(f"{what} has no position {position}: it has {tokens} tokens; give 0 to {tokens - 1}, or last")
