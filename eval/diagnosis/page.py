"""The self-contained page of a diagnosis, which opens from disk, and the same as text.

First the verdicts, then a section for each question with its figure and its numbers, then the settings. It runs and
loads nothing and escapes every text (data/shards/page.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from data.shards.page import render
from eval.diagnosis import plots
from eval.diagnosis.drawing import inline
from eval.diagnosis.findings import Findings, Gap
from eval.diagnosis.said import STANDINGS, rest, standing
from eval.diagnosis.sections import sections
from eval.report import LONGEST_SETTING, clip
from eval.results import write_whole
from eval.tables import aligned, piped

FOLDER = Path(__file__).parent
COLUMNS = 110  # of a terminal


class Picture(NamedTuple):
    """A figure of the page."""

    section: str
    alt: str
    svg: bytes

    @property
    def address(self) -> str:
        return inline(self.svg)


def write_page(path: Path, found: Findings, history: Mapping[int, Gap] | None = None) -> Path:
    """Write the page, all or nothing, and return its path. `history`: the gap by step, drawn from two steps on."""
    style, body = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.html"))
    page = render(
        style,
        body,
        title=title(found),
        found=found,
        standing=standing,
        rest=rest,
        standings=STANDINGS,
        sections=sections(found, history),
        pictures=list(pictures(found, history or {})),
        clip=lambda text: clip(text, LONGEST_SETTING),
    )
    write_whole(path, page)
    return path


def title(found: Findings) -> str:
    """What was diagnosed, on one line."""
    told = {"model": "", "step": "step ", "data": ""}
    parts = [f"{before}{found.facts[name]}" for name, before in told.items() if found.facts.get(name) is not None]
    line = " ".join(f"Diagnosis of latents: {', '.join(parts)}".split())
    return "".join(letter for letter in line if letter.isprintable())  # none that turns the others around


def pictures(found: Findings, history: Mapping[int, Gap]) -> Iterator[Picture]:
    """All figures that there are numbers for; the numbers themselves are in the tables of their sections."""
    gap, numbers = found.gap, "The table below has the numbers."
    if use := {name: arm for name, arm in found.use.items() if name != "kept" and arm.no_effect is None}:
        alt = f"Change of the accuracy and share of changed answers for {len(use)} arms, with intervals. {numbers}"
        yield Picture("use", alt, plots.causal_use(use))
    if found.by_slots:
        whole = gap.sources["prior_mean"].accuracy if "prior_mean" in gap.sources else None
        alt = f"Accuracy by the number of slots, up to {found.slots}, with intervals. {numbers}"
        yield Picture("slots", alt, plots.slots(found.by_slots, whole, found.slots))
    alt = f"Nats of the right answer and accuracy for {len(gap.sources)} sources of z, with intervals. {numbers}"
    yield Picture("gap", alt, plots.sources(gap))
    past = {step: one for step, one in history.items() if one.mean is not None}
    if len(past) > 1:
        alt = f"Gap between inference and training at {len(past)} steps, with intervals. {numbers}"
        yield Picture("gap", alt, plots.gap_over_steps(past))
    if found.leakage:
        alt = f"Bars: wrong answers given when shown, what a linear probe reads, and ratios of variances. {numbers}"
        yield Picture("leakage", alt, plots.leakage(found.leakage))
    if found.inputs:
        alt = f"Way of the latents and share of changed answers for {len(found.inputs)} altered prompts. {numbers}"
        yield Picture("inputs", alt, plots.alterations(found.inputs))
    alt = f"Deviation of the items' means and mean sigma in each of {found.slots} slots. {numbers}"
    yield Picture("geometry", alt, plots.geometry(found.geometry))
    if layers := len(found.attention.answer_to_latents):
        alt = f"Attention of the answer and of the latents over {layers} layers. {numbers}"
        yield Picture("attention", alt, plots.attention(found.attention))


def markdown(found: Findings, history: Mapping[int, Gap] | None = None) -> str:
    """To paste: the verdicts, and all tables."""
    lines = [f"# {title(found)}", "", f"{found.n} items. Intervals of 95 % in brackets.", ""]
    lines += piped([["question", "answer", ""], *([v.question, v.answer, v.said] for v in found.verdicts)])
    for section in sections(found, history):
        lines += ["", f"## {section.title}", "", " ".join([section.words, _source(section.source)]).strip()]
        for table in section.tables:
            lines += ["", f"{table.caption}:", "", *piped(table.rows)]
    return "\n".join(lines) + "\n"


def text(found: Findings) -> str:
    """For the terminal: the verdicts, and the tables of all sections but the settings."""
    lines = [title(found), f"{found.n} items; intervals of 95 % in brackets"]
    for verdict in found.verdicts:
        said = fill(verdict.said, COLUMNS, initial_indent="  ", subsequent_indent="  ")
        lines += ["", f"{verdict.question} {verdict.answer.upper()}", said]
    for section in sections(found):
        if section.name != "facts":
            lines += ["", section.title.upper()]
            lines += [
                line for table in section.tables for line in ("", f"{table.caption}:", aligned(_short(table.rows)))
            ]
    return "\n".join(lines) + "\n"


def _source(source: str) -> str:
    return f"Source: {source}." if source else ""


def _short(rows: list[list[str]]) -> list[list[str]]:
    """Cells on one line, names without what they mean."""
    return [[" ".join(cell.split()) for cell in (name.partition(": ")[0], *others)] for name, *others in rows]
