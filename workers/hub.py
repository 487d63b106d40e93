"""Models of the Hugging Face hub: which commit is meant, and its weights on this machine."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from raylens.storage.errors import ModelError, one_line

#: Names under which transformers looks for weights, in its order; an index names the files of a model in several.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class _Index(msgspec.Struct):
    """What is read of a model's index: the file of each weight."""

    weight_map: dict[str, str]


def commit_of(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag is now; where the hub does not answer, what it was when the model was last fetched.

    Args:
        repo: a hub id, such as ``org/name``.
        revision: branch, tag or commit; None for main.

    Raises:
        ModelError: there is no such model or revision, or it may not be read, or it is not a model for transformers.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        config = hf_hub_download(repo, "config.json", revision=revision)
    except errors.GatedRepoError:
        problem = "access denied by the hub; accept its licence there and run hf auth login"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        problem = (
            "no such folder here, nor a model of that name on the hub; check the name, or run hf auth login if it is private"
        )
    except errors.RevisionNotFoundError:
        problem = f"--revision {revision}: the hub has no such branch, tag or commit of it"
    except errors.LocalEntryNotFoundError as error:  # also in offline mode
        why = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        problem = f"no such folder here, it was not fetched before, and the hub cannot be asked ({why}); check name and network"
    except errors.EntryNotFoundError:
        problem = "has no config.json on the hub; give a model that transformers can load"
    except (OSError, ValueError) as error:  # such as a token that is refused, or a disk that is full
        problem = f"cannot be fetched from the hub ({one_line(error)})"
    else:
        return Path(config).parent.name  # of the hub's cache: .../snapshots/COMMIT/config.json
    raise ModelError(f"--model {repo}: {problem}")


def fetch(repo: str, commit: str, told: Callable[[int, int], None]) -> None:
    """Bring the weights into this machine's cache, unless they are there; loading does the same where this finds none to bring.

    Args:
        told: called about once a second with the bytes that are there and that there are to be.

    Raises:
        ModelError: they cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    try:
        files = [hf_hub_download(repo, name, revision=commit, dry_run=True) for name in _weights(repo, commit)]
        sizes = {file.filename: file.file_size or 0 for file in files if file.will_download}
        done, total = 0, sum(sizes.values())
        for name, size in sizes.items():
            hf_hub_download(repo, name, revision=commit, tqdm_class=_bar(done, total, told))
            done += size
            told(done, total)
    except (OSError, ValueError) as error:
        raise ModelError(f"--model {repo}: its weights cannot be fetched from the hub ({one_line(error)})") from error


def _weights(repo: str, commit: str) -> Iterator[str]:
    from huggingface_hub import errors, hf_hub_download

    for name in _WEIGHTS:
        try:
            if not name.endswith(".json"):
                hf_hub_download(repo, name, revision=commit, dry_run=True)
                yield name
            else:
                index = Path(hf_hub_download(repo, name, revision=commit)).read_bytes()
                yield from sorted(set(msgspec.json.decode(index, type=_Index).weight_map.values()))
        except errors.EntryNotFoundError:
            continue
        return


def _bar(before: int, total: int, told: Callable[[int, int], None]) -> Any:
    """A class for what huggingface_hub takes for a progress bar, that draws nothing and tells instead."""
    from tqdm import tqdm

    class Told(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            more.pop("name", None)  # that older versions give to any class
            super().__init__(*args, **{**more, "disable": False, "file": io.StringIO(), "mininterval": 1.0})

        def display(self, *_: Any, **__: Any) -> None:
            told(before + int(self.n), total)

        # with these there is no second bar, of bytes from the network beside those that are written
        def update_transfer(self, *_: Any) -> None: ...
        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

    return Told
