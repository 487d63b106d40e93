"""What a lens is fitted with. Knows no torch, so that a wrong option is told at once."""

from typing import Literal

from raylens.storage.errors import UsageError
from raylens.storage.python_values import Settings
from raylens.workers.settings import ModelSettings, check_types

Kind = Literal["tuned", "linear"]

#: Tokens to fit on, and of one batch.
TOKENS = 1 << 16
BATCH_TOKENS = 512
#: Steps of training, where the option leaves them open.
STEPS = 64
#: Adam's learning rate times the model's width, likewise: each weight moves by the rate, and so many add up in an output.
WIDTH_RATE = 0.05


class FitSettings(Settings, frozen=True):
    """What is fitted to what.

    Attributes:
        model: which.
        kind: ``tuned`` (least squares, then trained on the divergence) or ``linear`` (least squares only).
        tokens: to fit on; an eighth of it is validated on, and another eighth held out for the report.
        steps: of training; None means 64 for tuned, and linear has none.
        learning_rate: of Adam at the first step, falling to 0 linearly; None means 0.05 / the model's width.
        batch_tokens: of one forward pass and so of one step, padding included; longer prompts are cut to it.
        seed: of the split of the prompts and the order of the batches.
    """

    model: ModelSettings
    kind: Kind = "tuned"
    tokens: int = TOKENS
    steps: int | None = None
    learning_rate: float | None = None
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0

    @property
    def trained_steps(self) -> int:
        """Steps of training, with the default put in."""
        return 0 if self.kind == "linear" else STEPS if self.steps is None else self.steps


def check(settings: FitSettings) -> None:
    """Refuse values of the wrong type, and numbers out of range.

    Raises:
        UsageError: naming the option.
    """
    check_types(settings)
    if settings.kind == "linear":
        for option, value in {"--steps": settings.steps, "--learning-rate": settings.learning_rate}.items():
            if value is not None:
                raise UsageError(f"{option} {value}: a linear lens is least squares and is not trained; give --kind tuned")
    if settings.tokens < 8:
        raise UsageError(f"--tokens {settings.tokens}: must be at least 8")
    if settings.steps is not None and settings.steps < 0:
        raise UsageError(f"--steps {settings.steps}: must be 0 or more")
    if settings.learning_rate is not None and not 0 < settings.learning_rate <= 1:
        raise UsageError(f"--learning-rate {settings.learning_rate:g}: must be over 0 and at most 1")
    if settings.batch_tokens < 2:
        raise UsageError(f"--batch-tokens {settings.batch_tokens}: must be at least 2")
    if not 0 <= settings.seed < 1 << 63:
        raise UsageError(f"--seed {settings.seed}: must be from 0 to {(1 << 63) - 1}")
