"""What a run says while it trains: one progress bar and MLflow metrics, on rank 0."""

import math
import sys
from typing import Any

from deepspeed import DeepSpeedEngine
from tqdm import tqdm

from model.latent_vlm import PARTS, Weights
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.tracking import Tracker


class Reporter:
    """Collects the sums of the steps between two log lines. On other ranks than 0 it only keeps count."""

    def __init__(self, config: Config, tracker: Tracker | None, ranks: int, first_step: int) -> None:
        self.config, self.tracker, self.ranks = config, tracker, ranks
        self.bar = tqdm(
            total=config.train.steps,
            initial=first_step,
            disable=tracker is None,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,  # a log file needs few lines
        )
        self._clear()

    def _clear(self) -> None:
        self.sums = [0.0] * len(PARTS)
        self.tokens, self.seconds, self.waited, self.steps = 0, 0.0, 0.0, 0

    def step(
        self,
        progress: Progress,
        weights: Weights,
        parts: list[float],
        engine: DeepSpeedEngine,
        tokens: int,
        seconds: float,
        waited: float,
    ) -> None:
        """Take in one step: its global sums (PARTS), and this rank's tokens and seconds."""
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)]
        self.tokens += tokens
        self.seconds += seconds
        self.waited += waited
        self.steps += 1
        self.bar.update()
        if self.tracker and (progress.step % self.config.train.log_every == 0 or progress.step == 1):
            metrics = self.metrics(progress, weights, engine)
            self.tracker.metrics(metrics, progress.step)
            self.bar.set_postfix_str(
                f"loss {metrics['loss/total']:.3f}, {metrics['speed/tokens_per_second']:,.0f} tokens/s",
                refresh=False,
            )
            self._clear()

    def metrics(self, progress: Progress, weights: Weights, engine: DeepSpeedEngine) -> dict[str, float]:
        """Means over the steps taken in; nats are per sample, losses as they are optimised."""
        sums = dict(zip(PARTS, self.sums, strict=True))
        tokens, samples = sums["tokens"], sums["samples"]
        latent = self.config.latent
        kl_count = tokens if self.config.objective.kl_reduction == "token" else samples * latent.slots * latent.width
        ntp, forward, reverse = sums["ntp"] / tokens, sums["forward"] / kl_count, sums["reverse"] / kl_count
        backbone_lr, latent_lr = ([g["lr"] for g in engine.optimizer.param_groups] * 2)[:2]
        norm = engine.get_global_grad_norm()
        return {
            "loss/total": ntp + weights.beta * forward + weights.gamma * reverse,
            "loss/ntp": ntp,
            "loss/forward_kl": forward,
            "loss/reverse_kl": reverse,
            "nats/forward_kl_per_sample": sums["forward"] / samples,
            "nats/reverse_kl_per_sample": sums["reverse"] / samples,
            "weight/beta": weights.beta,
            "weight/gamma": weights.gamma,
            "sigma/prior": sums["sigma_p"] / samples,
            "sigma/posterior": sums["sigma_q"] / samples,
            "lr/backbone": backbone_lr,
            "lr/latent": latent_lr,
            "gradient_norm": float(norm) if norm is not None else math.nan,
            "speed/tokens_per_second": self.tokens * self.ranks / self.seconds,
            "speed/samples_per_second": samples / self.seconds,
            "speed/seconds_per_step": self.seconds / self.steps,
            "speed/data_wait_share": self.waited / self.seconds,
            "progress/samples": progress.samples,
        }

    def facts(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint's completion mark says of the run."""
        return {"progress": vars(progress), "mlflow_run_id": self.tracker.run_id if self.tracker else None}

    def close(self, status: str | None = None) -> None:
        """End the bar and, with a status of MLflow's, the MLflow run."""
        self.bar.close()
        if self.tracker and status:
            self.tracker.finish(status)
