"""raylens against its peers: ``python -m tests.benchmarks.bench_peers``; what it prints is explained in docs/benchmarks.md.

Every peer has a process of its own that stays alive, and the environment that tests/benchmarks/install_peers.sh made for it.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raylens.workers.settings import ModelSettings
from raylens.workers.source import resolve
from tests.benchmarks.corpus import PROMPTS
from tests.benchmarks.machine import load, processor
from tests.benchmarks.processes import ROOT, PeerError, PeerProcess
from tests.benchmarks.rounds import FOUR, in_turns, table

DEFAULT_ENVIRONMENT = ROOT / ".venv-peers"
#: Name in tables, module of peers, and environment where it is not this one.
RAYLENS = ("raylens", "raylens_worker")
HOOKS = ("hooks, log_softmax, topk", "hooks")
LENS = ("TransformerLens", "transformer_lens_peer", "transformer_lens")
NNTERP = ("nnterp", "nnterp_peer", "nnterp")
TUNED = ("tuned-lens", "tuned_lens_peer", "tuned_lens")
#: Prompts of a round where 15 selections of taps are timed.
SELECTION_PROMPTS = 12


@dataclass(frozen=True)
class Setting:
    """What is measured and how often.

    Attributes:
        folder: of the model.
        peers: folder of the peers' environments.
        texts: the corpus.
        rounds: of each table.
    """

    folder: str
    peers: Path
    texts: list[str]
    rounds: int

    def start(self, name: str, module: str, environment: str = "") -> PeerProcess:
        """Start a peer, in the environment that was made for it or else in this one.

        Raises:
            PeerError: it does not start.
        """
        python = self.peers / environment / "bin" / "python" if environment else Path(sys.executable)
        if not python.exists():
            raise PeerError(f"{name}: not measured: no {python}; run tests/benchmarks/install_peers.sh {self.peers}")
        return PeerProcess(name, module, str(python), self.folder)


@contextmanager
def started(setting: Setting, base: tuple[str, str], *peers: tuple[str, ...]) -> Iterator[list[PeerProcess]]:
    """The base and the peers that start; a line on each that does not, and on the versions of the others.

    Raises:
        PeerError: the base does not start.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(setting.start(*base))]
        for peer in peers:
            try:
                processes.append(stack.enter_context(setting.start(*peer)))
            except PeerError as error:
                print(error)
        for process in processes:
            versions = ", ".join(f"{package} {version}" for package, version in process.about["versions"].items())
            print(f"{process.name}: {versions}; {process.about['threads']} threads")
        print(flush=True)
        yield processes


def compared(setting: Setting, taps: list[str], *peers: tuple[str, ...]) -> None:
    """All peers on the whole corpus."""
    with started(setting, RAYLENS, *peers) as (base, *others):
        table(in_turns(base, others, setting.texts, taps, setting.rounds))


def four(setting: Setting) -> None:
    """Four taps of every layer at all positions, k=10."""
    compared(setting, FOUR, ("raylens, float32 logprobs", "raylens_worker --float32"), HOOKS, LENS, NNTERP)


def block(setting: Setting) -> None:
    """Block output of every layer at all positions, k=10."""
    compared(setting, ["resid_post"], HOOKS, LENS, NNTERP, TUNED)


def selections(setting: Setting) -> None:
    """Each selection of the four taps; raylens is never to be the slower."""
    texts = setting.texts[16 : 16 + SELECTION_PROMPTS] or setting.texts
    found = []
    with started(setting, RAYLENS, HOOKS) as (base, hooks):
        for count in range(1, len(FOUR) + 1):
            for taps in map(list, itertools.combinations(FOUR, count)):
                _, timed = in_turns(base, [hooks], texts, taps, setting.rounds)
                timed.name = f"hooks: {', '.join(taps)}"
                found.append(timed)
    table(found)


def shares(setting: Setting) -> None:
    """Where raylens' time goes, four taps."""
    command = [sys.executable, "-m", "tests.benchmarks.shares", setting.folder, str(len(setting.texts))]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def ray(setting: Setting) -> None:
    """Through Ray: raylens.run into a store, and Ray Data with the hooks baseline in its actor; from the loaded model on."""
    peer = ("Ray Data, hooks in its actor", "ray_data_peer", "ray_data")
    with started(setting, ("raylens.run", "raylens_run"), peer) as (base, *others):
        timed = in_turns(base, others, setting.texts, FOUR, setting.rounds)
    table(timed)
    whole = ", ".join(f"{one.name} {statistics.median(one.whole):.1f} s" for one in timed)
    print(f"With starting the actor and loading the model: {whole}\n")


SECTIONS: dict[str, Callable[[Setting], None]] = {section.__name__: section for section in (four, block, selections, shares, ray)}


def main() -> None:
    """Measure the sections asked for, all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--model", default="demo", help="as of raylens run; Llama-like")
    parser.add_argument("--peers", type=Path, default=DEFAULT_ENVIRONMENT, help="the folder given to install_peers.sh")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the 64")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    source = resolve(ModelSettings(given.model))
    setting = Setting(source.path, given.peers, PROMPTS[: given.prompts], given.rounds)
    print(f"{processor()}; {source.label} in float32, {len(setting.texts)} prompts; model loading and warm-up not timed\n")
    for name in given.sections or SECTIONS:
        print(f"## {SECTIONS[name].__doc__} ({load()})\n", flush=True)
        try:
            SECTIONS[name](setting)
        except PeerError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
