"""What one branch of a rollout said: everything that its update needs beside the prompt."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """The actions of a branch, in order. T tokens."""

    ids: tuple[int, ...]  # [T] tokens that were drawn, the end mark included where it was
    ended: bool  # whether the last of them is an end mark
    latent_at: int | None  # how many of them stand before the latents (0: `always`); None: it has no latents
    noise: str  # names the random numbers of its latents (model/batch.py: noise_of)
    logps: tuple[float, ...]  # [T] log-probabilities while it was drawn, nats, of the distribution before top-p

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tokens that the model reads again: all but an end mark."""
        return self.ids[:-1] if self.ended else self.ids
