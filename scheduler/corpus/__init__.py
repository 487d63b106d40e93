"""The corpus: prompts read from files as a stream, checked before a run and read again during it."""

from raylens.scheduler.corpus.corpus import Corpus, CorpusSummary
from raylens.scheduler.corpus.fingerprint import Fingerprint
from raylens.scheduler.corpus.settings import CorpusSettings, Format

__all__ = ["Corpus", "CorpusSettings", "CorpusSummary", "Fingerprint", "Format"]
