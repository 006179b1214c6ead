"""The sections of a diagnosis: one for each question, with what it is, where it comes from, and its numbers as tables.

Cells are text: shares and changes of accuracy go from 0 to 1, nats are per answer, intervals of 95 % stand in brackets.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from eval.diagnosis.cases import ALTERATIONS
from eval.diagnosis.findings import Alteration, Arm, Attention, Findings, Gap, Geometry, Leakage
from eval.diagnosis.said import HANDED, NATS, share, told
from eval.intervention_table import ARMS
from eval.report import flat

AMVL = "AMVL (arXiv 2607.00461)"
ARM = ("accuracy", "change of accuracy", "p", "change of nats", "answers that change")
WORDS = ARMS | {"oracle": "the mean of the posterior that saw the right answer"}
SOURCES = {
    "posterior": "z ~ q(z | x, y), as in training",
    "prior_mean": "the prior's mean, as at inference",
    "prior": "z ~ p(z | x)",
    "noise": "z ~ N(0, I)",
}


class Table(NamedTuple):
    """The first row is the header, the first cell of each row its name."""

    caption: str
    rows: list[list[str]]


class Section(NamedTuple):
    name: str
    title: str
    words: str  # what it is and how to read it
    source: str  # where the measure comes from
    tables: list[Table]


def sections(found: Findings, history: Mapping[int, Gap] | None = None) -> list[Section]:
    """All that there are numbers for, in the order of the page; `history`: the gap by step."""
    made = [
        _use(found.use, found.gap),
        _slots(found.by_slots, found.slots, found.gap) if found.by_slots else None,
        _gap(found.gap, history or {}),
        _leakage(found.leakage) if found.leakage else None,
        _inputs(found.inputs) if found.inputs else None,
        _geometry(found.geometry),
        _attention(found.attention),
        _facts(found),
    ]
    return [section for section in made if section is not None]


def _use(use: Mapping[str, Arm], gap: Gap) -> Section | None:
    if not use:
        return None
    rows = [["latents", "z moves by", *ARM], *_kept(gap, f"kept: {SOURCES['prior_mean']}", 1)]
    for name, arm in use.items():
        if name != "kept":
            rows.append([_named(name, arm), "" if arm.moved is None else f"{arm.moved:.3f}", *_arm(arm)])
    return Section(
        "use",
        "What do the latents do for the answer?",
        "The same items are asked with their latents taken away, or with others in their place. A model that "
        "reasons in its latents answers worse (changes to the left of 0); one that only gained from having slots "
        "does not mind. Answers can change without the accuracy, as many for the better as for the worse. What "
        "moves z by little of its length cannot change much. Latents strange to the model may disturb it whatever "
        "they hold.",
        "removal and noise after Leveraging Latent Visual Reasoning in Silence (arXiv 2605.18641), "
        "replacement of latents after arXiv 2605.21642",
        [Table("Every arm against the prior's mean, paired by item; p is McNemar's, exact", rows)],
    )


def _named(name: str, arm: Arm) -> str:
    words = f": {WORDS[name]}" if name in WORDS else ""
    return f"{name} (no effect){words}; {arm.no_effect}" if arm.no_effect else name + words


def _arm(arm: Arm) -> list[str]:
    return [share(arm.accuracy), told(arm.change), f"{arm.p:.2g}", told(arm.nats), share(arm.flips)]


def _kept(gap: Gap, name: str, before: int = 0) -> Iterator[list[str]]:
    """The row that arms are compared with."""
    if whole := gap.sources.get("prior_mean"):
        yield [name, *[""] * before, share(whole.accuracy), *[""] * (len(ARM) - 1)]


def _slots(by_slots: Mapping[int, Arm], slots: int, gap: Gap) -> Section:
    rows = [["slots", *ARM], *([str(count), *_arm(arm)] for count, arm in sorted(by_slots.items()))]
    return Section(
        "slots",
        "How many slots does it take?",
        f"The answer sees the first of its {slots} slots alone. Where the curve is flat, the slots beyond add nothing; "
        "a model that was trained with all of them may also mind that there are fewer.",
        "removal as above (arXiv 2605.18641), here of some of the slots alone",
        [Table("Against all slots, paired by item", [*rows, *_kept(gap, f"{slots} (all)")])],
    )


def _gap(gap: Gap, history: Mapping[int, Gap]) -> Section:
    rows = [["z from", "nats of the right answer", "accuracy"]]
    rows += [[f"{SOURCES.get(n, n)}", share(s.nats), share(s.accuracy)] for n, s in gap.sources.items()]
    tables = [Table("By source of z", rows)]
    gaps = {
        "nats at the prior's mean less those with z ~ q": gap.mean,
        "nats with z ~ p less those with z ~ q": gap.drawn,
        "accuracy with z ~ q less that at the prior's mean": gap.accuracy,
    }
    if differences := [[name, told(e)] for name, e in gaps.items() if e is not None]:
        tables.append(Table("Between training and inference, paired by item", [["difference", "value"], *differences]))
    steps = [
        [str(step), *("" if e is None else told(e) for e in (one.mean, one.drawn, one.accuracy))]
        for step, one in sorted(history.items())
    ]
    if len(steps) > 1:
        header = ["step", "nats, prior's mean", "nats, drawn", "accuracy lost"]
        tables.append(Table("The same over the training", [header, *steps]))
    return Section(
        "gap",
        "Is inference as good as training?",
        "In training z comes from the posterior, which has seen the answer; at inference there is the prior alone. "
        "Nats are −log p of the right answer, so fewer are better: the prior should cost hardly more than the "
        f"posterior (a gap of up to {NATS:g} nats), and noise clearly more than both.",
        AMVL + ", whose two KL terms are there to close this gap",
        tables,
    )


def _leakage(of: Leakage) -> Section:
    rows = [["quantity", "value"]]
    rows += [
        ["answers that become the wrong answer shown to the posterior", share(of.rate)],
        ["answers that are this wrong answer all the same", share(of.base)],
        ["difference", told(of.excess)],
        ["symmetric KL between the posteriors of a right and a wrong answer, nats", share(of.sensitivity)],
        ["accuracy of a linear probe for the answer on the posterior's mean", f"{of.probe_posterior:.3f}"],
        ["accuracy of a linear probe for the answer on the prior's mean", f"{of.probe_prior:.3f}"],
        ["always the commonest answer", f"{of.probe_majority:.3f}"],
        ["prior's variance over the posterior's", f"{of.inflation:.3f}"],
        ["that ratio, if the prior covered the posteriors of all answers", f"{of.inflation_by_answers:.3f}"],
    ]
    return Section(
        "leakage",
        "Does the posterior hand over the answer?",
        "The posterior is shown a wrong answer. If the model then gives that answer more often than else (by more "
        f"than {HANDED:g}), the latents of training carried it, and what was learned from them is lost at inference. "
        "A prior that is pulled towards the posteriors of all answers becomes wider than any of them: a ratio well "
        "above 1.",
        AMVL + " for posterior, prior and their KL terms; the interventions are this project's",
        [Table("Wrong answers are those of the item's other candidates", rows)],
    )


def _inputs(inputs: Mapping[str, Alteration]) -> Section:
    rows = [["prompt", "items", "latents move by", "change of accuracy", "answers that change", "by the latents alone"]]
    for name, of in inputs.items():
        said = f"{name}: {ALTERATIONS[name]}" if name in ALTERATIONS else name
        rows.append([said, str(of.n), f"{of.moved:.3f}", told(of.change), share(of.flips), share(of.latents_alone)])
    return Section(
        "inputs",
        "Do the latents see the prompt?",
        "The prompt is altered. Latents that depend on what was altered move, 1 being the distance between two "
        "items. In the last column the answer sees the prompt as it was and the latents alone the altered one: what "
        "flips there went through the latents.",
        "the two halves of a mediation, as in Imagination Helps Visual Reasoning, But Not Yet in Latent Space "
        "(arXiv 2602.22766)",
        [Table("Altered prompts", rows)],
    )


def _geometry(of: Geometry) -> Section:
    rows = [["quantity", "value"], ["effective rank", f"{of.effective_rank:.2f} of at most {of.most_rank}"]]
    if of.within is not None:
        rows.append(["mean cosine between two slots of an item", f"{of.within:.4f}"])
    rows.append(["mean cosine between the same slot of two items", f"{of.across:.4f}"])
    rows.append(["distance of items from their mean, over its length", f"{of.spread:.3f}"])
    columns = [of.slot_spread, of.sigma_prior, *([of.sigma_posterior] if of.sigma_posterior is not None else [])]
    header = ["slot", "deviation of the items' means", "σ of the prior", "σ of the posterior"][: len(columns) + 1]
    slots = [[str(n), *(f"{value:.4g}" for value in row)] for n, row in enumerate(zip(*columns, strict=True), 1)]
    return Section(
        "geometry",
        "What shape have the latents?",
        "Descriptions of the prior's means; none is a score of quality. An effective rank near 1, cosines near 1 and a "
        "distance near 0 say that all items (or slots) have nearly the same latents. Where the items' means deviate by "
        "far less than σ, a draw from the prior is mostly noise.",
        "effective rank: Roy and Vetterli (2007)",
        [Table("Over all items", rows), Table("By slot", [header, *slots])],
    )


def _attention(of: Attention) -> Section | None:
    if not of.answer_to_latents:
        return None
    columns = (of.answer_to_latents, of.answer_to_images, of.latents_to_images)
    rows = [[str(n), *(f"{value:.4f}" for value in row)] for n, row in enumerate(zip(*columns, strict=True), 1)]
    return Section(
        "attention",
        "Who looks at whom?",
        "Share of the attention, mean over heads and items, by layer of the language model; the answer is the token "
        "that predicts its first. Attention shows where information can flow, not that it is used: for that see the "
        "first figure.",
        "attention to latents is what Leveraging Latent Visual Reasoning in Silence (arXiv 2605.18641) rewards",
        [Table("By layer", [["layer", "answer to latents", "answer to pictures", "latents to pictures"], *rows])],
    )


def _facts(found: Findings) -> Section:
    rows: Sequence[tuple[str, str]] = [*flat(found.facts), ("items", str(found.n)), ("slots", str(found.slots))]
    listed = [["setting", "value"], *([*row] for row in [*rows, ("width of a slot", str(found.width))])]
    return Section("facts", "Settings", "What was diagnosed, and how.", "", [Table("Settings and versions", listed)])
