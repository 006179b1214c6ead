"""Steps that went wrong: a gradient that is not finite, and losses far above what they were.

What is measured while nothing is wrong: trainer/vitals.py.
"""

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from data.sample import UserError
from trainer.checkpoint import complete
from trainer.ledger import Ledger

MEMORY = 100  # steps, about, that mean and spread are taken over


class HealthConfig(BaseModel):
    """What is taken for unhealthy, and how much of it ends a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_a_row: int = Field(
        20, ge=1, description="steps without a finite gradient, one after the other, that end the run"
    )
    spike: float = Field(
        8.0, ge=0, description="standard deviations above its mean from which a loss counts as a spike; 0: none does"
    )
    vitals_every: int = Field(
        500,
        ge=0,
        description="steps from one look at each loss's gradient and at the latents to the next; 0: none; rl has none",
    )


class HealthError(UserError):
    """A run that only goes through the motions."""


class Health:
    """Looks at the loss of every step. All ranks see the same losses and come to the same ends."""

    def __init__(self, config: HealthConfig, run: Path, rank: int) -> None:
        self.config, self.run, self.ledger = config, run, Ledger(run / "spikes", rank)
        self.skipped_in_a_row = 0
        self._steps, self._mean, self._square = 0, 0.0, 0.0  # moving averages of loss and squared distance from it

    def check(self, step: int, loss: float, skipped: bool, samples: list[str]) -> str | None:
        """What is wrong with a step, if something is; `samples` are this rank's.

        HealthError when too many steps in a row were skipped, which names the checkpoint to go back to.
        """
        if skipped or not math.isfinite(loss):
            self.skipped_in_a_row += 1
            self.ledger.write(step, samples, loss=str(loss))
            if self.skipped_in_a_row >= self.config.in_a_row:
                good = complete(self.run)  # a step that is skipped changes no weights
                last = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
                raise HealthError(
                    f"step {step}: no finite gradient for {self.skipped_in_a_row} steps in a row; {last}; "
                    f"lower train.lr and look at the samples in {self.ledger.folder}"
                )
            return f"step {step}: the gradient is not finite, the step is skipped; samples in {self.ledger.folder}"
        self.skipped_in_a_row = 0
        spread, mean = math.sqrt(self._square), self._mean
        far = self._steps >= MEMORY / 4 and self.config.spike and loss > mean + self.config.spike * spread
        self._learn(loss)
        if not far:
            return None
        self.ledger.write(step, samples, loss=loss)
        return f"step {step}: loss {loss:.4g} after {mean:.4g} ± {spread:.2g}; its samples are in {self.ledger.folder}"

    def _learn(self, loss: float) -> None:
        self._steps += 1
        weight = max(1 / self._steps, 1 / MEMORY)
        away = loss - self._mean
        self._mean += weight * away
        self._square += weight * (away * away * (1 - weight) - self._square)
