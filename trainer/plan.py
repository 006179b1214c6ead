"""The dry run: the model without weights, one batch, and an estimate of the memory per rank."""

from torch import nn
from transformers import PreTrainedConfig

from data.pack import Packs
from data.stream import Stream
from model.batch import cost
from model.build import load_processor, shape_only
from trainer.config import Config
from trainer.zero import settings

RANKS = (1, 2, 8, 64)


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trained) parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def state_bytes(total: int, trained: int, ranks: int, bf16: bool) -> float:
    """Bytes per rank of weights, gradients and AdamW's state under ZeRO-3 (ZeRO, arXiv 1910.02054, section 3.1)."""
    weight = 2 if bf16 else 4
    # With bf16 the optimizer keeps an fp32 copy of the weights as well.
    optimizer = 12 if bf16 else 8
    return (weight * total + (weight + optimizer) * trained) / ranks


def activation_bytes(config: Config, text: PreTrainedConfig, targets: int, bf16: bool) -> float:
    """Bytes that the backward pass needs of the largest packed row: the inputs of every layer's matrices
    (with checkpointing of every layer alone), and fp32 logits with their gradient at the targets."""
    layer = 12 * text.hidden_size + 4 * text.intermediate_size
    kept = (
        text.hidden_size * text.num_hidden_layers + layer
        if config.model.checkpoint_layers
        else layer * text.num_hidden_layers
    )
    return config.train.tokens * kept * (2 if bf16 else 4) + targets * text.vocab_size * 4 * 2


def dry_run(config: Config) -> list[str]:
    """Lines that say what the run would be. Raises what the run would raise at its start."""
    settings(config)
    bf16 = config.train.bf16
    processor = load_processor(config.model)
    recipe = config.objective.recipe
    model = shape_only(config.model, config.latent, recipe)
    stream = Stream(config.data, 0, 1, config.run.seed)
    slots, window, oversize = config.latent.slots, config.data.window, config.data.oversize
    packs = Packs(stream, processor.encode, lambda s: cost(s, recipe, slots), config.train.tokens, window, oversize)
    pack = next(packs)
    total, trained = parameters(model)
    latent = sum(parameters(m)[0] for m in model.latent_modules().values())
    tokens = sum(cost(s, recipe, config.latent.slots) for s in pack)
    text = model.backbone.config.text_config
    targets = sum(len(s.answer) for s in pack)
    activations = activation_bytes(config, text, targets, bf16)
    lines = [
        f"objective {config.objective.name}, {config.latent.slots} slots of width {config.latent.width}",
        f"parameters: {total:,} ({latent:,} latent), {trained:,} trained",
        f"first batch: {len(pack)} samples, {sum(len(s.grids) for s in pack)} images, {tokens:,} of "
        f"{config.train.tokens:,} tokens, {targets} targets",
        f"precision: {'bf16' if bf16 else 'fp32'}; activations about {_mib(activations)} per rank",
    ]
    for ranks in RANKS:
        states = state_bytes(total, trained, ranks, bf16)
        lines.append(f"memory per rank of {ranks:>2}: about {_mib(states + activations)} (model states {_mib(states)})")
    return lines


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 10 * 2**30 else f"{count / 2**30:,.0f} GiB"
