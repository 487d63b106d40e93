"""What a run is: written once when it begins, compared when the same command comes again."""

import re
import secrets
from typing import Any

import msgspec

from raylens.storage.durable import create_file, decode_json, read_file, write_file
from raylens.storage.errors import StoreError, UsageError
from raylens.storage.layout import RunFolder
from raylens.storage.ledger import Ledger
from raylens.storage.sealed import sealed, unsealed

#: Version of run.json.
FORMAT = 1
#: Characters of a setting in a message: an intervention's prompt may have any length, and of a digest nobody reads more.
_LONGEST, _DIGITS = 300, 12
_DIGEST = re.compile(r"[0-9a-f]{32,}")


class Manifest(msgspec.Struct, frozen=True):
    """The contents of run.json.

    Attributes:
        format: version of this file.
        name: the run's name, which is also its folder's.
        uid: 16 random hex digits that name its stream.
        created: ISO 8601 time, UTC.
        identity: what the results depend on, by section and name. A resume must match it.
        prompts: outcomes that make it complete: prompts in the corpus, or with --generate their samples.
        vocabulary_size: number of logits.
        sources: where model and corpus were read from, for people.
        versions: package -> version at the start.
    """

    format: int
    name: str
    uid: str
    created: str
    identity: dict[str, dict[str, Any]]
    prompts: int
    vocabulary_size: int
    sources: dict[str, Any]
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """The model's name; with the lens if it is not the logit lens, and ``edited`` if there is an intervention."""
        kind = self.lens_kind
        words = [str(self.sources.get("label", "")), "" if kind == "logit" else f"{kind} lens"]
        return ", ".join(word for word in [*words, "edited" if self.edited else ""] if word)

    @property
    def edited(self) -> bool:
        """Whether there is an intervention."""
        return "intervention" in self.identity

    @property
    def lens_kind(self) -> str:
        """``logit``, also of runs from before there were other lenses, ``tuned``, ``jacobian`` or ``linear``."""
        return str(self.identity.get("lens", {}).get("kind", "logit"))

    @property
    def tracked(self) -> list[str]:
        """The names by which tokens were tracked, in the order of their statistics; another tool may have written anything."""
        names = self.identity.get("lens", {}).get("track")
        return list(dict.fromkeys(map(str, names))) if isinstance(names, list | tuple) else []


def read_manifest(folder: RunFolder) -> Manifest:
    """The manifest of a run.

    Raises:
        StoreError: it is damaged or of another version.
    """
    try:
        data = read_file(folder.manifest)
    except OSError as error:
        what = "the run cannot be read without it" if folder.is_run else "not a raylens run"
        raise StoreError(f"{folder.manifest}: {error.strerror}; {what}") from error
    found = decode_json(folder.manifest, data, Manifest, FORMAT)
    unsealed(folder.manifest, data)
    return found


def check_kept(folder: RunFolder) -> None:
    """Refuse to go on with a run that has records, but lost its manifest.

    Raises:
        StoreError: naming the file.
    """
    if not folder.manifest.exists():
        why = "missing, and nothing else says what the records are of"
        raise StoreError(f"{folder.manifest}: {why}; restore it, or start over with raylens run --fresh")


def create_or_resume(folder: RunFolder, wanted: Manifest) -> Manifest:
    """The manifest of the run: the wanted one, also in place of one by which nothing was stored, or an earlier one that agrees.

    Raises:
        UsageError: a run of that name has other settings; the message shows each difference.
    """
    folder.create()
    data = sealed(wanted)
    if create_file(folder.manifest, data):
        _forget_model(folder)  # of a run whose manifest was lost before anything was stored
        return wanted
    found = read_manifest(folder)
    changes = difference(found.identity, wanted.identity)
    if changes and _fence_empty(folder):
        _forget_model(folder)
        write_file(folder.manifest, data)
        if _fence_empty(folder):  # also for a writer that took over in between, with the former settings
            return wanted
        write_file(folder.manifest, sealed(found))
    if changes:
        raise UsageError(f"run {wanted.name!r} was made with other settings: {'; '.join(changes)}; repeat those, or give --name")
    return found


def _fence_empty(folder: RunFolder) -> bool:
    """Fence the writers of a run in which nothing was ever stored; whether it is such a one."""
    return not any(commit.entries for commit in Ledger(folder).take_over(secrets.token_hex(4)))


def _forget_model(folder: RunFolder) -> None:
    for path in (folder.certificate, folder.vocabulary):
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = str(value)
    longest = _DIGITS if _DIGEST.fullmatch(text) else _LONGEST
    return text if len(text) <= longest else f"{text[:longest]}…"


def difference(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """Each setting that differs once both are JSON, as ``section.name: old -> new``."""
    old, new = (msgspec.json.decode(msgspec.json.encode(one), type=dict[str, dict[str, Any]]) for one in (old, new))
    changes = []
    for section in sorted(old.keys() | new.keys()):
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                changes.append(f"{section}.{name}: {_short(before.get(name))} -> {_short(after.get(name))}")
    return changes
