"""One loaded model that fits the maps of some places. Runs under a debugger without Ray.

Layers have nothing to do with each other once hidden states are there, so fitters share layers and not data: each makes the same
forward passes, in the same order, and no gradient travels.
"""

from collections.abc import Generator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.storage.errors import ModelError
from raylens.workers.adapter import adapt
from raylens.workers.batching import position_switch
from raylens.workers.blocks import input_device
from raylens.workers.fitting.divergence import Divergence
from raylens.workers.fitting.moments import Moments
from raylens.workers.fitting.report import LayerReport
from raylens.workers.fitting.rows import HiddenRows, batched, epochs
from raylens.workers.fitting.settings import WIDTH_RATE, FitSettings
from raylens.workers.fitting.texts import PARTS
from raylens.workers.fitting.translator import Translator, identity
from raylens.workers.lenses.affine import Affine
from raylens.workers.lenses.interface import Place
from raylens.workers.model import load_model
from raylens.workers.process_settings import untouched_settings
from raylens.workers.tokenize import Tokenized

#: Ridge penalties that are tried; what is best depends on how many rows there are for each direction.
PENALTIES = (1.0, 0.1, 0.01)

#: Place -> name of a candidate -> its map, and its mean KL.
Candidates = dict[Place, dict[str, Affine]]
Divergences = dict[Place, dict[str, float]]


class Fitter:
    """Fits step by step, so that the caller can show progress and stop.

    Args:
        settings: of the fit.
        texts: part -> prompts as token ids.
        places: whose maps are fitted.
        threads: CPU threads for torch; None leaves them.
    """

    def __init__(
        self, settings: FitSettings, texts: dict[str, list[list[int]]], places: list[Place], threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._settings, self._places = settings, places
        self._texts = texts
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._work = self._run()
        self._maps: dict[Place, Affine] = {}
        self._chosen: dict[Place, str] = {}
        self._kl: Divergences = {}

    @property
    def steps(self) -> int:
        """Calls of ``advance``, known after ``load``."""
        trained = self._settings.trained_steps
        validations = len(self._validation) * (2 if trained else 1)
        return len(self._fit) + validations + trained + len(self._held_out)

    @untouched_settings()
    def load(self) -> int:
        """Load the model; the steps to come.

        Raises:
            ModelError: it cannot be loaded or lensed.
        """
        model, _ = load_model(self._settings.model)
        model.requires_grad_(requires_grad=False)
        switch, most = position_switch(model.config.get_text_config()), self._settings.batch_tokens
        self._fit, self._validation, self._held_out = (batched(self._texts[part], most, switch) for part in PARTS)
        adapter = adapt(model)
        adapter.taps(tuple({tap for tap, _ in self._places}))
        self._dtype = adapter.certificate["dtype"]
        self._divergence = Divergence(adapter.projection)
        self._device = self._divergence.device
        self._width = int(model.config.get_text_config().hidden_size)
        self._rows = HiddenRows(adapter, self._places, input_device(model), self._device)
        next(self._work)
        return self.steps

    @untouched_settings()
    def advance(self) -> None:
        """Make the next step.

        Raises:
            ModelError: the model's numbers are not finite.
        """
        next(self._work, None)

    def reports(self) -> list[LayerReport]:
        """Of each place, once all steps are made."""
        return [
            LayerReport(*place, self._kl[place]["identity"], self._kl[place]["fitted"], self._chosen[place])
            for place in self._places
        ]

    def map(self, place: Place) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """W [D, D] and b [D] of x + W x + b, once all steps are made."""
        fitted = self._maps[place]
        assert fitted.bias is not None
        return fitted.matrix.cpu().numpy(), fitted.bias.cpu().numpy()

    def _run(self) -> Iterator[None]:
        """All the work; yields before each step of it."""
        moments = {place: Moments(self._width, self._device) for place in self._places}
        for batch in self._fit:
            yield
            rows = self._rows(batch)
            for place, sums in moments.items():
                sums.add(rows[place], rows[self._rows.last])
        for place, sums in moments.items():
            if not sums.finite:
                raise self._not_finite(place)
        plain = identity(self._width, self._device)
        candidates = {
            place: {"identity": plain, **{f"ridge {penalty:g}": sums.ridge(penalty) for penalty in PENALTIES}}
            for place, sums in moments.items()
        }
        kl = yield from self._measure(self._validation, candidates)
        self._choose(candidates, kl)
        if self._settings.trained_steps:
            translators = {place: Translator(self._maps[place], sums) for place, sums in moments.items()}
            yield from self._train(translators)
            trained = {place: {"trained": translator.merged()} for place, translator in translators.items()}
            of_trained = yield from self._measure(self._validation, trained)
            best = {place: {self._chosen[place]: self._maps[place], **trained[place]} for place in self._places}
            self._choose(best, {place: {**kl[place], **of_trained[place]} for place in self._places})
        fitted = {place: {"identity": plain, "fitted": self._maps[place]} for place in self._places}
        self._kl = yield from self._measure(self._held_out, fitted)

    def _choose(self, candidates: Candidates, kl: Divergences) -> None:
        """Keep the map with the lowest divergence; the first of equals, so that nothing is changed for nothing."""
        for place, maps in candidates.items():
            self._chosen[place] = min(maps, key=kl[place].__getitem__)
            self._maps[place] = maps[self._chosen[place]]

    def _train(self, translators: dict[Place, Translator]) -> Iterator[None]:
        """Adam on the mean divergence of each place, on one batch a step."""
        steps, rate = self._settings.trained_steps, self._settings.learning_rate or WIDTH_RATE / self._width
        parameters = [parameter for translator in translators.values() for parameter in translator.parameters]
        adam = torch.optim.Adam(parameters, lr=rate)
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=steps)
        for _, batch in zip(range(steps), epochs(self._fit, self._generator), strict=False):
            yield
            rows = self._rows(batch)
            for part, final in self._finals(rows):
                for place, translator in translators.items():
                    found = self._divergence(translator(rows[place][part]), final)
                    (found.sum() / len(rows[place])).backward()  # type: ignore[no-untyped-call]
            adam.step()
            falling.step()
            adam.zero_grad()

    def _measure(self, batches: list[list[Tokenized]], candidates: Candidates) -> Generator[None, None, Divergences]:
        """The mean divergence of each candidate of each place over all rows; not a number counts as infinite.

        Raises:
            ModelError: that of the plain residual is not a number.
        """
        sums = {place: dict.fromkeys(maps, 0.0) for place, maps in candidates.items()}
        count = 0
        for batch in batches:
            yield
            count += self._add(sums, self._rows(batch), candidates)
        means = {
            place: {name: value / count if np.isfinite(value) else float("inf") for name, value in found.items()}
            for place, found in sums.items()
        }
        for place, found in means.items():
            if not np.isfinite(found.get("identity", 0.0)):
                raise self._not_finite(place)
        return means

    def _not_finite(self, place: Place) -> ModelError:
        why = ", in float32 already" if self._dtype == "float32" else "; try --dtype float32"
        return ModelError(f"the model's hidden states at {place[0]} {place[1]} are not finite (NaN or overflow){why}")

    @torch.no_grad()
    def _add(self, sums: Divergences, rows: dict[Place, Tensor], candidates: Candidates) -> int:
        for part, final in self._finals(rows):
            for place, maps in candidates.items():
                for name, fitted in maps.items():
                    sums[place][name] += float(self._divergence(fitted(rows[place][part]), final).sum(dtype=torch.float64))
        return len(rows[self._rows.last])

    def _finals(self, rows: dict[Place, Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the rows with the logprobs of the model's own prediction there."""
        last = rows[self._rows.last]
        for part in self._divergence.chunks(len(last)):
            with torch.no_grad():
                final = self._divergence.logprobs(last[part])
            yield part, final
