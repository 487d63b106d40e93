"""What was measured about a run's model when it loaded, and every way in which its actors read it."""

from typing import Any

from raylens.storage.durable import read_file, store_errors, write_file
from raylens.storage.errors import StoreError
from raylens.storage.layout import RunFolder
from raylens.storage.record import MAX_LAYERS
from raylens.storage.sealed import sealed, unsealed

#: Most other ways that are kept: as many kinds of machine hardly take part in one run.
MOST = 16


def write_certificate(folder: RunFolder, certificate: dict[str, Any]) -> None:
    """Store an actor's certificate; of one that comes after another only how it reads, under ``others``, if no other does so.

    Machines of other kinds read in other ways, which differ within the bounds that each tells, so a run says all of them.
    A file that is damaged stays as it is: verify tells of it.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        kept = read_certificate(folder)
    except StoreError:
        return
    others = other_ways(kept)
    if not kept:
        kept = certificate
    elif _key(certificate) not in [_key(one) for one in (kept, *others)] and len(others) < MOST:
        kept = {**kept, "others": [*others, {name: certificate.get(name) for name in ("device", "lens")}]}
    else:
        return
    with store_errors(folder.certificate):
        write_file(folder.certificate, sealed(kept))


def read_certificate(folder: RunFolder) -> dict[str, Any]:
    """What was measured about the model; empty before a model loaded.

    Raises:
        StoreError: it is damaged, or its ``layers`` are none of a model.
    """
    try:
        found = unsealed(folder.certificate, read_file(folder.certificate))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{folder.certificate}: {error.strerror}") from error
    layers = found.get("layers", 1)
    if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
        raise StoreError(f"{folder.certificate}: damaged ({str(layers)[:40]!r} layers)")
    return found


def model_layers(certificate: dict[str, Any], highest: int) -> int:
    """Layers of the model; where no certificate says so, as many as the highest that was read is the last of."""
    return int(certificate.get("layers", 1 + highest))


def other_ways(certificate: dict[str, Any]) -> list[dict[str, Any]]:
    """``device`` and ``lens`` of actors that read in another way than the one whose certificate it is."""
    others = certificate.get("others")
    return [one for one in others if isinstance(one, dict)] if isinstance(others, list) else []


def path_of(certificate: dict[str, Any]) -> str:
    """How logits were computed; a question mark where it does not say, as another tool may have written it."""
    lens = certificate.get("lens")
    return str(lens.get("path", "?")) if isinstance(lens, dict) else "?"


def _key(certificate: dict[str, Any]) -> tuple[str, str]:
    return str(certificate.get("device")), path_of(certificate)
