"""Which prompts are fitted to, validated on and held out: by a hash of their tokens, so equal ones go into one part."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from raylens.storage.errors import InputError
from raylens.storage.record import Failure, Prompt
from raylens.workers.tokenize import Tokenizer

#: One prompt in so many is held out, and one is validated on; so are the tokens divided.
SHARE = 8
PARTS = ("fit", "validation", "held_out")


@dataclass(frozen=True, slots=True)
class Texts:
    """Token ids of the prompts of each part, in the order of the corpus.

    Attributes:
        parts: part -> prompts.
        skipped: prompts that could not be tokenized, or had one token.
    """

    parts: dict[str, list[list[int]]] = field(default_factory=lambda: {part: [] for part in PARTS})
    skipped: int = 0

    def tokens(self, part: str) -> int:
        """Positions of a part that are read: all but each prompt's first."""
        return sum(len(ids) - 1 for ids in self.parts[part])


def part_of(ids: list[int], seed: int) -> str:
    """The part of a prompt, by SHA-256 of seed and token ids; it does not depend on other prompts."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {ids}".encode()).digest()[:8], "big") % SHARE
    return "held_out" if drawn == 0 else "validation" if drawn == 1 else "fit"


def take_texts(
    prompts: Iterable[Prompt], tokenizer: Tokenizer, tokens: int, seed: int, corpus: str, told: Callable[[int, int], None]
) -> Texts:
    """Prompts of each part until it has its tokens; the last is cut. Ends as soon as all have.

    Args:
        tokenizer: cuts long prompts.
        tokens: of the part that is fitted to; the others get one in SHARE.
        corpus: its name, for the message.
        told: called before each prompt with the tokens that are there, and how many there are to be.

    Raises:
        InputError: a part got no prompt.
    """
    texts, skipped, why = Texts(), 0, ""
    left = {"fit": tokens, "validation": tokens // SHARE, "held_out": tokens // SHARE}
    total = sum(left.values())
    for prompt in prompts:
        told(total - sum(left.values()), total)
        found = tokenizer(prompt)
        if isinstance(found, Failure):
            why = why or f" (prompt {found.id!r}: {found.message})"
        if isinstance(found, Failure) or len(found.ids) < 2:
            skipped += 1
            continue
        part = part_of(found.ids, seed)
        if left[part] > 0:
            kept = found.ids[: left[part] + 1]
            texts.parts[part].append(kept)
            left[part] -= len(kept) - 1
        if not any(left.values()):
            break
    for part in PARTS:
        if not texts.parts[part]:
            raise InputError(
                corpus, f"no prompt of two tokens or more for the part {part}{why}", "give more that differ, or another --seed"
            )
    return Texts(texts.parts, skipped)
