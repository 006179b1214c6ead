"""How long a step should take: its FLOPs at a stated utilisation against what ZeRO-3 sends at a stated speed.

Per micro-step each rank receives the weights once per pass of a layer (forward and backward, in every round) and sends
its gradients once per backward pass (ZeRO, arXiv 1910.02054, section 7; two rounds: model/cut.py). With a copy of the
weights per node (ZeRO++, arXiv 2306.10209) all but the first pass receive them within the node. A ring of R ranks
moves (R - 1) / R of the bytes past each of them; past a node's border they share its network cards.
"""

from typing import NamedTuple

from trainer.throughput import PEAKS


class Gpu(NamedTuple):
    """A kind of GPU in nodes of eight; bytes per second in one direction (vendors' figures)."""

    peak: float  # dense bf16 FLOP/s
    memory: float  # bytes
    inside: float  # between GPUs of a node
    outside: float  # of one GPU's network card


NODE = 8
GPUS = {
    "a100": Gpu(PEAKS["a100",], 80e9, 300e9, 25e9),
    "h100": Gpu(PEAKS["h100",], 80e9, 450e9, 50e9),
    "h200": Gpu(PEAKS["h200",], 141e9, 450e9, 50e9),
}


class Traffic(NamedTuple):
    """What each rank receives and sends in a micro-step."""

    weights: float  # bytes of all weights
    passes: int  # how often they are received
    gradients: float  # bytes of the gradients of one backward pass
    reductions: int  # how often they are sent
    collectives: int  # calls, by layer and direction

    @classmethod
    def of(cls, total: int, trained: int, rounds: int, layers: int, width: int) -> "Traffic":
        return cls(width * total, 2 * rounds, width * trained, rounds, 3 * rounds * layers)


class Time(NamedTuple):
    """Seconds of a step."""

    compute: float
    communication: float

    @property
    def step(self) -> float:
        """Sending is hidden behind computing, or the other way round."""
        return max(self.compute, self.communication)


def ring(size: float, ranks: int, gpu: Gpu) -> float:
    """Seconds in which all ranks gather or reduce `size` bytes."""
    if ranks == 1:
        return 0.0
    speed = gpu.inside if ranks <= NODE else min(gpu.inside, NODE * gpu.outside)
    return size * (ranks - 1) / ranks / speed


def step_time(
    flops: float, traffic: Traffic, ranks: int, gpu: Gpu, mfu: float, micro_steps: int, node_copy: int, hop: float
) -> Time:
    """A step of so many micro-steps of `flops` each. hop: seconds a call takes per node that it passes."""
    near = min(ranks, node_copy)
    wide = 1 if node_copy > 1 else traffic.passes
    gather = wide * ring(traffic.weights, ranks, gpu) + (traffic.passes - wide) * ring(traffic.weights, near, gpu)
    reduce = traffic.reductions * ring(traffic.gradients, ranks, gpu)
    far_calls = traffic.collectives * (wide + traffic.reductions) / (traffic.passes + traffic.reductions)
    waits = far_calls * hop * max(0, ranks // NODE - 1)
    return Time(micro_steps * flops / (mfu * gpu.peak), micro_steps * (gather + reduce + waits))
