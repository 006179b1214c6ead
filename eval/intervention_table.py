"""What interventions on latents came to: the table, a line on each, and where they are looked for."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from eval import record
from eval.evaluate import Measured
from eval.models import Model
from eval.paired import LEVEL
from eval.replacements import GIVEN
from eval.request import Folders
from eval.results import as_json, write_whole
from eval.scores import Estimate, Frozen, proportion
from eval.tables import aligned, interval, percent, piped

ARMS = {  # what becomes of the latents
    "kept": "as the model is asked",
    "removed": "no slots and no marks",
    **GIVEN,
    "markers": "the marks with nothing between them",
}


class Arm(Frozen):
    """One intervention. The accuracy is the benchmark's official average; the change is paired by item."""

    no_effect: str | None = None  # why it is none; then it says nothing about the model
    n: int | None = None  # None: it was not run
    moved: float | None = None  # median over items of |z - m| / |m|, m the prior's mean; where z is given
    accuracy: Estimate | None = None
    change: Estimate | None = None  # against `kept`; None for `kept` itself
    p: float | None = None  # that the change is one of chance
    flips: Estimate | None = None  # share of items whose answer, as it was read, is another


class Interventions(Frozen):
    """What interventions.json holds."""

    benchmark: str
    official: str  # the average: macro or micro
    settings: dict[str, Any]  # of `kept`
    arms: dict[str, Arm]


def arm_of(kept: Measured, found: Measured | None, moved: Tensor | None, no_effect: str | None) -> Arm:
    """One arm beside `kept`. `found`: None where it was not run; `moved`: how far each item's z was moved [N]."""
    median = float(moved.median()) if moved is not None else None
    if found is None:
        return Arm(no_effect=no_effect, moved=median)
    scores, difference = found.scores, found.comparison
    official = scores.macro if scores.official == "macro" else scores.micro
    if difference is None:
        return Arm(n=scores.n, accuracy=official)
    macro = difference.official == "macro"
    flips = sum(a.answer != b.answer for a, b in zip(kept.results, found.results, strict=True))
    return Arm(
        no_effect=no_effect,
        n=scores.n,
        moved=median,
        accuracy=official,
        change=difference.macro if macro else difference.micro,
        p=difference.macro_p if macro else difference.micro_p,
        flips=proportion(flips, scores.n),
    )


def write(found: Interventions, model: Model, name: str, where: Folders) -> None:
    """Files, what is printed, and metrics such as eval/blink/interventions/removed/change."""
    rows, said = list(_rows(found)), list(_verdicts(found))
    files = [where.read / "interventions.json", where.read / "interventions.md"]
    write_whole(files[0], as_json(found.model_dump(mode="json")))
    write_whole(files[1], "\n".join([_head(found), "", *piped(rows), "", *(f"- {line}" for line in said)]) + "\n")
    print("\n".join([_head(found), aligned(rows), *said]))
    values = {}
    for arm, one in found.arms.items():
        for metric in ("accuracy", "change", "flips"):
            if (estimate := getattr(one, metric)) and one.no_effect is None:
                values[record.metric_name(f"eval/{name}/interventions/{arm}/{metric}")] = estimate.value
    record.track(model, f"{name},interventions", values, files)
    print(f"report: {files[1]}")


def _head(found: Interventions) -> str:
    how = ", ".join(f"{name} {found.settings[name]}" for name in ("prompt", "mode", "latents", "seed"))
    return f"{found.benchmark}: interventions on latents, {found.official} average in points; {how}"


def _rows(found: Interventions) -> Iterator[list[str]]:
    yield ["latents", "n", "z moves by", "accuracy", "95 %", "change", "95 %", "p", "answers that change"]
    for name, arm in found.arms.items():
        row = [name, "" if arm.n is None else str(arm.n), "" if arm.moved is None else f"{arm.moved:.3g}"]
        row += [percent(arm.accuracy.value), interval(arm.accuracy)] if arm.accuracy else []
        if arm.change and arm.flips:
            row += [percent(arm.change.value, "+.2f"), interval(arm.change, "+.2f"), f"{arm.p:.2g}"]
            row.append(f"{percent(arm.flips.value, '.1f')} %")
        yield row + [""] * (9 - len(row))


def _verdicts(found: Interventions) -> Iterator[str]:
    for name, arm in found.arms.items():
        if arm.no_effect:
            yield f"{name}: {arm.no_effect}"
        elif arm.accuracy and arm.change and arm.flips and arm.p is not None:
            chance = "" if arm.p < LEVEL else ", no more than chance"
            moved = "" if arm.moved is None else f"; z moves by {arm.moved:.3g} times its length"
            yield (
                f"{name} ({ARMS[name]}): accuracy {percent(arm.accuracy.value)}, "
                f"{percent(arm.change.value, '+.2f')} {interval(arm.change, '+.2f')} against kept{chance}; "
                f"{percent(arm.flips.value, '.1f')} % of answers change{moved}"
            )
