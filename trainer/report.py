"""What a run says while it trains: one progress bar and MLflow metrics, on rank 0."""

import math
import resource
import sys
from typing import Any, NamedTuple

import torch
from deepspeed import DeepSpeedEngine
from tqdm import tqdm

from model.latent_vlm import PARTS, Weights
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.throughput import peak_of
from trainer.tracking import Tracker

WAITING = 0.05  # share of the time spent waiting for data above which the bar says so


class Counts(NamedTuple):
    """What a step took in, over all ranks and micro-steps."""

    targets: float  # tokens predicted
    samples: float
    tokens: float  # through the language model, all rounds
    image_tokens: float  # of them in round 1, from images
    flops: float  # of the model, as trainer/throughput.py counts
    shrunk: float  # samples made smaller since the run's start
    dropped: float  # samples left out since the run's start, as they are too large
    bad: float  # samples left out since the run's start, as they cannot be used
    # Not of the step, but what ranks have to tell each other, at no further cost: how many of them
    stop: float = 0.0  # are asked to stop
    written: float = 0.0  # have written their part of the checkpoint that is on its way
    unwritten: float = 0.0  # could not


class Step(NamedTuple):
    """One step, for the reporter."""

    counts: Counts
    weights: Weights
    parts: list[float]  # global sums in the order of PARTS
    skipped: bool  # the gradient was not finite, so that nothing was changed
    seconds: float  # on this rank
    waited: float  # of them until the data was there

    @property
    def loss(self) -> float:
        """As it is optimised: of the whole step, over all ranks."""
        sums = dict(zip(PARTS, self.parts, strict=True))
        kls = self.weights.beta * sums["forward"] + self.weights.gamma * sums["reverse"]
        return (sums["ntp"] + kls * self.weights.per_nat / self.weights.per_token) / sums["tokens"]


class Reporter:
    """Collects the steps between two log lines. On other ranks than 0 (no tracker) it does nothing."""

    def __init__(self, config: Config, tracker: Tracker | None, ranks: int, first_step: int) -> None:
        self.config, self.tracker, self.ranks = config, tracker, ranks
        self.peak = peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.steps: list[Step] = []
        self.bar = tqdm(
            total=config.train.steps,
            initial=first_step,
            disable=tracker is None,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15,  # a log file needs few lines
        )

    def step(self, progress: Progress, engine: DeepSpeedEngine, step: Step, saving: dict[str, float]) -> None:
        """Take in one step, and log when it is time to; `saving` has the seconds that the last checkpoint took."""
        if not self.tracker:
            return
        self.steps.append(step)
        self.bar.update()
        if progress.step % self.config.train.log_every == 0 or progress.step == 1:
            metrics = self.losses(engine) | self.speeds()
            metrics |= {f"progress/{name}": getattr(progress, name) for name in ("samples", "tokens", "skipped")}
            metrics |= {f"checkpoint/{name}_seconds": value for name, value in saving.items()}
            self.tracker.metrics(
                {name: value for name, value in metrics.items() if math.isfinite(value)}, progress.step
            )
            self.bar.set_postfix_str(postfix(metrics), refresh=False)
            self.steps.clear()

    def vitals(self, step: int, values: dict[str, float]) -> None:
        """Log what a look before a step found; what is not finite is left out."""
        if self.tracker:
            self.tracker.metrics({name: value for name, value in values.items() if math.isfinite(value)}, step)

    def losses(self, engine: DeepSpeedEngine) -> dict[str, float]:
        """Means over the steps taken in; nats are per sample, losses as they are optimised."""
        steps = [step for step in self.steps if not step.skipped] or self.steps
        sums = {part: sum(step.parts[i] for step in steps) for i, part in enumerate(PARTS)}
        weights = self.steps[-1].weights
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
        }

    def speeds(self) -> dict[str, float]:
        """Of all ranks together over the steps taken in; seconds, waiting and memory are rank 0's."""
        total = Counts(*(sum(values) for values in zip(*(step.counts for step in self.steps), strict=True)))
        seconds = sum(step.seconds for step in self.steps)
        train, steps = self.config.train, len(self.steps)
        values = {
            "speed/tokens_per_second": total.tokens / seconds,
            "speed/image_tokens_per_second": total.image_tokens / seconds,
            "speed/samples_per_second": total.samples / seconds,
            "speed/seconds_per_step": seconds / steps,
            "speed/data_wait_share": sum(step.waited for step in self.steps) / seconds,
            "speed/model_flops_per_second": total.flops / seconds,
            "packing/fill": total.tokens / (train.tokens * train.accumulation * self.ranks * steps),
            "packing/shrunk": self.steps[-1].counts.shrunk,
            "packing/dropped": self.steps[-1].counts.dropped,
            "data/bad_samples": self.steps[-1].counts.bad,
            "memory/peak_bytes": peak_bytes(),
        }
        if self.peak:
            values["speed/mfu"] = total.flops / (seconds * self.ranks * self.peak)
        return values

    def facts(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint's completion mark says of the run."""
        return {"progress": vars(progress), "mlflow_run_id": self.tracker.run_id if self.tracker else None}

    def say(self, message: str | None) -> None:
        """A line that stands above the progress bar, if there is anything to say."""
        if self.tracker and message:
            self.bar.write(message)

    def close(self, status: str | None = None) -> None:
        """End the bar and, with a status of MLflow's, the MLflow run."""
        self.bar.close()
        if self.tracker and status:
            self.tracker.finish(status)


def postfix(metrics: dict[str, float]) -> str:
    """What the progress bar says beside its count."""
    words = [f"loss {metrics['loss/total']:.3f}", f"{metrics['speed/tokens_per_second']:,.0f} tokens/s"]
    if "speed/mfu" in metrics:
        words.append(f"MFU {metrics['speed/mfu']:.1%}")
    if metrics["data/bad_samples"]:
        words.append(f"{metrics['data/bad_samples']:,.0f} bad samples")
    if metrics["speed/data_wait_share"] > WAITING:
        words.append(f"{metrics['speed/data_wait_share']:.0%} waiting for data")
    return ", ".join(words)


def peak_bytes() -> int:
    """Most memory in use since the last call: the allocator's on a GPU; elsewhere the process's, since its start."""
    if not torch.cuda.is_available():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
