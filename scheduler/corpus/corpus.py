"""The corpus as a stream of prompts, and the pass that checks it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import msgspec

from raylens.scheduler.corpus.duplicates import IdHashes
from raylens.scheduler.corpus.fingerprint import Fingerprint
from raylens.scheduler.corpus.rows import BadRow, RowKeys
from raylens.scheduler.corpus.settings import CorpusSettings
from raylens.scheduler.corpus.sources import Source, find_sources, row_source
from raylens.storage.errors import InputError, UsageError
from raylens.storage.record import Prompt

_PROGRESS_EVERY = 8192


class CorpusSummary(msgspec.Struct, frozen=True):
    """A corpus that was read to its end and found right.

    Attributes:
        count: prompts.
        fingerprint, marks: 64 hexadecimal digits, and of the way there; see Fingerprint.
        bytes: the size of all prompts with ids and metadata, whatever the files' format.
        has_messages: whether any prompt is a chat, which needs a chat template.
    """

    count: int
    fingerprint: str
    marks: bytes
    bytes: int
    has_messages: bool


class Corpus:
    """Prompts, read from their files each time anew; only one row is in memory.

    Args:
        settings: what to read. Files are looked for when reading starts, standard input is read once.
        source: what to read instead of files and texts.

    Raises:
        UsageError: for settings that cannot be used or name nothing to read.
    """

    def __init__(self, settings: CorpusSettings, source: Source | None = None) -> None:
        if source is None and not settings.sources and not settings.texts:
            raise UsageError("no corpus; name files, '-' for standard input, or give --text")
        settings.check()
        self._settings = settings
        self._keys = RowKeys(settings.column, settings.id_column)
        self._sources = None if source is None else [source]

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[str | Mapping[str, Any]],
        *,
        column: str | None = None,
        id_column: str | None = None,
        limit: int | None = None,
    ) -> Self:
        """A corpus of Python values: texts, or dictionaries with the keys of JSON lines.

        Args:
            rows: read anew at each pass, and must not change; an iterator, which gives its rows once, is made a list.
            column, id_column, limit: as in CorpusSettings.

        Raises:
            UsageError: for settings that cannot be used, or a single text, dictionary, set or data frame instead of a list.
        """
        if hasattr(rows, "columns"):  # a data frame, which goes through its columns or nothing
            hint = "df.to_dict('records') of pandas, df.to_dicts() of polars, table.to_pylist() of pyarrow"
            raise UsageError(f"rows is a {type(rows).__name__}; give its rows as dictionaries: {hint}")
        if isinstance(rows, str | bytes | bytearray | memoryview | Mapping) or not isinstance(rows, Iterable):
            raise UsageError(f"rows is one {type(rows).__name__}; give a list of texts or dictionaries")
        if isinstance(rows, set | frozenset):
            raise UsageError(f"rows is a {type(rows).__name__}, which has another order in each process; give a list")
        source = row_source(list(rows) if isinstance(rows, Iterator) else rows)
        return cls(CorpusSettings(column=column, id_column=id_column, limit=limit), source)

    def prompts(self) -> Iterator[Prompt]:
        """All prompts from the start, with indices from 0.

        Raises:
            InputError: at the first row that is not a prompt. Duplicate ids are for ``scan`` to find.
        """
        for _, _, prompt in self._located():
            yield prompt

    def unchanged(self, summary: CorpusSummary) -> Iterator[Prompt]:
        """The prompts anew, each only once it is known that nothing up to it has changed since the corpus was scanned.

        Raises:
            InputError: something has.
        """
        fingerprint, waiting = Fingerprint(), []
        for prompt in self.prompts():
            before = len(fingerprint.marks)
            fingerprint.update(prompt)
            waiting.append(prompt)
            if mark := fingerprint.marks[before:]:
                self._refuse_change(mark == summary.marks[before : before + len(mark)])
                yield from waiting
                waiting.clear()
        self._refuse_change(fingerprint.hexdigest() == summary.fingerprint)
        yield from waiting

    def _refuse_change(self, same: bool) -> None:
        if not same:
            raise InputError(self.name, "the corpus changed while it was read", "run again when nothing writes to it")

    def scan(self, progress: Callable[[int], None] | None = None, fields: Iterable[str] = ()) -> CorpusSummary:
        """Read the corpus once to its end and check every row. Uses 8 bytes a prompt.

        Args:
            progress: called now and then, and at the end, with the number of prompts so far.
            fields: which some prompt must have besides its text, since they are asked for.

        Raises:
            InputError: at the first row that is not a prompt, for a duplicate id, and if there is no prompt at all, or none with
                a field.
        """
        fingerprint, hashes, lacking = Fingerprint(), IdHashes(), set(fields)
        count = size = 0
        has_messages = False
        for _, _, prompt in self._located():
            hashes.add(hash(prompt.id))
            size += fingerprint.update(prompt)
            count += 1
            has_messages = has_messages or prompt.messages is not None
            lacking -= prompt.metadata.keys()
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(count)
        if not count:
            raise InputError(self.name, "no prompts", "give at least one")
        if lacking:
            field = min(lacking)
            raise InputError(self.name, f"no prompt has the field {field!r} besides its text", f"correct --track field:{field}")
        if progress is not None:
            progress(count)
        for suspects in hashes.suspects():
            self._refuse_duplicates(suspects)
        return CorpusSummary(count, fingerprint.hexdigest(), bytes(fingerprint.marks), size, has_messages)

    def _located(self) -> Iterator[tuple[Source, int, Prompt]]:
        if self._sources is None:
            self._sources = find_sources(self._settings, self._keys)
        make, limit = self._keys.prompt, self._settings.limit
        index = 0
        for source in self._sources:
            for number, row in source.rows():
                try:
                    prompt = make(row, index)
                except BadRow as bad:
                    raise InputError(source.place(number), bad.problem, bad.remedy) from None
                yield source, number, prompt
                index += 1
                if index == limit:
                    return

    def _refuse_duplicates(self, suspects: frozenset[int]) -> None:
        """Raise for the first id that came before, of those with one of these hashes: two ids can share a hash."""
        first: dict[str, str] = {}
        for source, number, prompt in self._located():
            if hash(prompt.id) not in suspects:
                continue
            place = source.place(number)
            if prompt.id in first:
                raise InputError(place, f"duplicate id {prompt.id!r} (first at {first[prompt.id]})", "ids must be unique")
            first[prompt.id] = place

    @property
    def name(self) -> str:
        """Where the prompts come from, for people."""
        given = [*self._settings.sources, *(["--text"] if self._settings.texts else [])]
        said = ", ".join(given[:3]) + (f" and {len(given) - 3} more" if len(given) > 3 else "") or "rows"
        return said.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8, which is kept with the run
