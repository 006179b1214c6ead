"""What reinforcement learning says while it goes on: MLflow metrics of rollouts and steps, and pages of completions."""

import math
from collections import Counter

import deepspeed.comm as dist
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator

from trainer.checkpoint import Progress
from trainer.report import Reporter, peak_bytes
from trainer.rl.advantages import DROPPED, attention_share
from trainer.rl.group import Group
from trainer.rl.learn import Learned
from trainer.rl.page import write_page
from trainer.rl.weights import over_ranks


class RLReporter(Reporter):
    """On other ranks than 0 (no tracker) it only adds up."""

    def rollout(
        self, progress: Progress, groups: list[Group], seconds: dict[str, float], left_out: dict[str, int]
    ) -> None:
        """Take in a rollout, of which this rank has some groups, and what its stream has left out or shrunk since the
        start of the run. Every rank has to."""
        counts = counted(groups) | {f"data {name}": float(left_out[name]) for name in ("bad", "dropped", "shrunk")}
        device = torch.device(get_accelerator().current_device_name())
        values = torch.tensor(list(counts.values()), dtype=torch.float64, device=device)
        dist.all_reduce(values)
        metrics = rates(dict(zip(counts, values.tolist(), strict=True)))
        metrics["rollout/mismatch"] = over_ranks(device, mismatch(groups))
        if not self.tracker:
            return
        assert self.config.rl
        metrics["memory/peak_bytes"] = peak_bytes()
        metrics |= {f"seconds/{phase}": value for phase, value in seconds.items()}
        metrics["rollout/tokens_per_second"] = metrics["rollout/tokens"] / seconds["rollout"]
        metrics |= {f"reward/weight/{name}": weight for name, weight in groups[0].weights.items()}
        self.tracker.metrics(_finite(metrics), progress.step)
        words = f"accuracy {metrics['reward/accuracy']:.3f}, {metrics['rollout/length']:.0f} tokens"
        self.bar.set_postfix_str(words, refresh=False)
        if self.config.rl.pages and progress.rollouts % self.config.rl.pages == 0:
            page = write_page(self.config.run.path / "rollouts", progress.rollouts, groups)
            if page:
                self.tracker.artifact(page, "rollouts")

    def step(self, progress: Progress, engine: DeepSpeedEngine, step: Learned, saving: dict[str, float]) -> None:  # type: ignore[override]
        """Take in one optimizer step."""
        if not self.tracker:
            return
        self.bar.update()
        sums = step.sums
        tokens, latents = max(1.0, sums["tokens"]), max(1.0, sums["latents"])
        norm = engine.get_global_grad_norm()
        backbone_lr, latent_lr = ([g["lr"] for g in engine.optimizer.param_groups] * 2)[:2]
        metrics = {
            "update/loss": step.loss,
            "update/policy": sums["policy"] / tokens,
            "update/kl": sums["kl"] / tokens,
            "update/ratio": sums["ratio"] / tokens,
            "update/furthest_ratio": step.furthest,
            "update/clipped": sums["clipped"] / tokens,
            "update/latent_ratio": sums["latent_ratio"] / latents if sums["latents"] else math.nan,
            "update/latent_clipped": sums["latent_clipped"] / latents if sums["latents"] else math.nan,
            "update/tokens": sums["tokens"],
            "update/empty": float(step.empty),
            "update/tokens_per_second": step.tokens / step.seconds,
            "seconds/update": step.seconds,
            "gradient_norm": float(norm) if norm is not None and not step.empty else math.nan,
            "lr/backbone": backbone_lr,
            "lr/latent": latent_lr,
        }
        metrics |= {
            f"progress/{name}": getattr(progress, name) for name in ("samples", "rollouts", "tokens", "skipped")
        }
        metrics |= {f"checkpoint/{name}_seconds": value for name, value in saving.items()}
        self.tracker.metrics(_finite(metrics), progress.step)


def counted(groups: list[Group]) -> dict[str, float]:
    """Sums over this rank's groups and completions, under the same names on every rank."""
    sums: Counter[str] = Counter()
    for group in groups:
        sums.update(_of_group(group))
        for i in range(len(group.completions)):
            sums.update(_of_completion(group, i))
    return dict(sorted(sums.items()))


def _of_group(group: Group) -> dict[str, float]:
    kept = group.dropped is None
    dropped = {f"groups {why}": float(group.dropped == why) for why in DROPPED}
    return dropped | {
        "groups": 1.0,
        "groups kept": float(kept),
        "groups of one text": float(len(set(group.texts)) == 1),
        "attention share": attention_share(group) if kept else 0.0,
    }


def _of_completion(group: Group, i: int) -> dict[str, float]:
    one, seen, valid = group.completions[i], group.seen[i], math.isfinite(group.rewards[i])
    latents = len(seen.z) > 0
    slots = seen.z.shape[1]
    context = len(group.prompt.prompt) + slots + 2 + len(one.inputs) / 2  # tokens that a word sees, in the mean
    parts = {f"part {name}": values[i] if math.isfinite(values[i]) else 0.0 for name, values in group.parts.items()}
    return parts | {
        "completions": 1.0,
        "valid": float(valid),
        "empty": float(not one.inputs),
        "ended": float(one.ended),
        "tokens": float(len(one.ids)),
        "entropy": seen.entropy * len(one.ids),
        "reward": group.rewards[i] if valid else 0.0,
        "to images": seen.to_images,
        "latents": float(latents),
        "latents: to latents": seen.to_latents if latents else 0.0,
        "latents: to images": seen.to_images if latents else 0.0,
        "latents: lift": seen.to_latents * context / max(1, slots) if latents else 0.0,
    }


def rates(sums: dict[str, float]) -> dict[str, float]:
    """Metrics from the sums of all ranks. Not a number where there is nothing to divide by."""

    def share(name: str, of: str) -> float:
        return sums[name] / sums[of] if sums[of] else math.nan

    parts = [name for name in sums if name.startswith("part ")]
    to_latents, to_images = share("latents: to latents", "latents"), share("latents: to images", "latents")
    return {
        **{f"reward/{name.removeprefix('part ')}": share(name, "completions") for name in parts},
        "reward/total": share("reward", "valid"),
        "rollout/latent_use": share("latents", "completions"),
        "rollout/length": share("tokens", "completions"),
        "rollout/ended": share("ended", "completions"),
        "rollout/empty": sums["empty"],
        "rollout/left_out": sums["completions"] - sums["valid"],
        "rollout/entropy": share("entropy", "tokens"),
        "rollout/tokens": sums["tokens"],
        "attention/to_latents": to_latents,
        "attention/to_images": share("to images", "completions"),
        "attention/lift": share("latents: lift", "latents"),  # times what even attention would pay
        "attention/latents_over_images": to_latents / to_images if to_images else math.nan,
        "advantage/attention_share": share("attention share", "groups kept"),
        **{f"groups/{name}": sums[f"groups {name}"] for name in ("kept", *DROPPED)},
        "groups/one_text": sums["groups of one text"],
        "data/bad_samples": sums["data bad"],
        "packing/dropped": sums["data dropped"],
        "packing/shrunk": sums["data shrunk"],
    }


def mismatch(groups: list[Group]) -> float:
    """The furthest that a token's log-probability, as it was drawn, is from what is measured of it, nats."""
    pairs = ((one, seen) for group in groups for one, seen in zip(group.completions, group.seen, strict=True))
    return max(float((torch.tensor(one.logps) - seen.logps).abs().max()) for one, seen in pairs)


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
