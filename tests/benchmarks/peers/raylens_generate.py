"""The seed's job with raylens: a worker that generates, all prompts in one batch, as an actor does."""

from transformers import AutoTokenizer

from raylens.storage.record import Prompt, Record
from raylens.workers.settings import GenerationSettings, InputSettings, LensSettings, ModelSettings, WorkerSettings
from raylens.workers.worker import Worker
from tests.benchmarks.peers.raylens_worker import tops
from tests.benchmarks.peers.seed import NAMES, NEW_TOKENS
from tests.benchmarks.peers.turns import K, Tops, serve

#: Tokens of one batch, those to come included, as ``raylens run`` has it on a CPU.
BATCH_TOKENS = 4096


def worker(folder: str) -> Worker:
    """Greedy, float32, four taps of every layer."""
    return Worker(
        WorkerSettings(
            ModelSettings(folder, dtype="float32"),
            LensSettings(K, taps=tuple(NAMES)),
            InputSettings(batch_tokens=BATCH_TOKENS),
            generation=GenerationSettings(NEW_TOKENS),
        )
    )


class RaylensGenerate:
    """A worker, and its tokenizer for the comparison."""

    packages = ("torch", "transformers", "numba")

    def __init__(self, folder: str) -> None:
        self._worker = worker(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def lens(self, texts: list[str], taps: list[str]) -> list[Record]:
        """A record a text, of the positions from which its new tokens were predicted."""
        return list(self._worker.run([Prompt(number, str(number), text) for number, text in enumerate(texts)]))

    def tops(self, found: list[Record], taps: list[str]) -> Tops:
        """See Peer: tokens as text, as the seed has them."""
        read = tops(found, taps)
        return {tap: ([self._tokenizer.batch_decode([[token] for token in row]) for row in read[tap][0]], None) for tap in taps}


if __name__ == "__main__":
    serve(RaylensGenerate)
