"""Several samples of each prompt, as prompts of their own: each comes to exactly one record, like any other."""

from collections.abc import Iterator

import msgspec

from raylens.storage.record import Prompt


def samples_of(prompt: Prompt, count: int) -> Iterator[Prompt]:
    """The prompt itself, or so many of it, named ID#1, ID#2, ..., whose indexes follow those of the prompts before.

    ``#`` and a number at the end of other ids makes no two alike: every id of the run ends so.
    """
    if count == 1:
        yield prompt
        return
    for sample in range(1, count + 1):
        yield msgspec.structs.replace(prompt, index=prompt.index * count + sample - 1, id=f"{prompt.id}#{sample}", sample=sample)
