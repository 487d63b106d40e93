"""The Ray actor: a worker that publishes what it finds. The only module of workers that knows Ray."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from raylens.storage.errors import DeviceError
from raylens.storage.record import Prompt
from raylens.storage.stream import Stream
from raylens.workers.publish import Receipt, decode_prompts, encode_receipts, publish
from raylens.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from raylens.workers.worker import Worker


class LensActor:
    """A long-lived worker. The model loads on the first call, so that a load error reaches the caller as itself.

    Args:
        settings: of the worker.
        run: unique id of the run.
        redis: URL of the server.
        threads: CPU threads for torch.
    """

    def __init__(self, settings: WorkerSettings, run: str, redis: str, threads: int) -> None:
        self._settings = settings
        self._run = run
        self._threads = threads
        self._stream = Stream(redis, run)
        self._worker: Worker | None = None

    def up(self) -> None:
        """Answer at once: the process is there, its model may not be."""

    def load(self) -> dict[str, Any]:
        """Load the model; its certificate.

        Raises:
            ModelError: the model cannot be loaded or lensed.
        """
        return self._ready().certificate

    def work(self, prompts: bytes) -> bytes:
        """Lens and publish prompts; the receipts.

        Ends the process where a prompt broke the GPU.

        Raises:
            BrokerError: the server is away for longer than the client waits.
        """
        try:
            return encode_receipts(list(self._work(decode_prompts(prompts))))
        except DeviceError as error:  # Ray starts another process, and the driver tries each prompt again
            sys.stderr.write(f"raylens: {error}\n")
            sys.stderr.flush()
            os._exit(1)

    def _work(self, prompts: list[Prompt]) -> Iterator[Receipt]:
        for outcome in self._ready().run(prompts):
            yield publish(self._stream, self._run, outcome, patient=True)

    def _ready(self) -> "Worker":
        if self._worker is None:
            with _not_collecting():
                import torch

                from raylens.workers.worker import Worker

                torch.set_num_threads(self._threads)
                self._worker = Worker(self._settings)
        return self._worker


@contextmanager
def _not_collecting() -> Iterator[None]:
    """torch, transformers and a model are a million objects that stay; to look for garbage among them is a tenth of a load."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def start_actor(settings: WorkerSettings, run: str, redis: str, cpus: float, gpus: float, host: str | None) -> Any:
    """A new actor on the cluster, or on one machine of it. Ray restarts it when it dies; what it was doing is the driver's to
    resubmit."""
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
    if host is not None:
        options["resources"] = {f"node:{host}": 0.001}  # every node of that machine has one such, by Ray's own
    return ray.remote(LensActor).options(**options).remote(settings, run, redis, max(1, int(cpus)))
