"""Scores as text: for the terminal, and to paste. Shares from 0 to 1 are printed as points of 100."""

from collections.abc import Sequence

from eval.scores import Estimate, Score, Scores


def percent(share: float | None, form: str = ".2f") -> str:
    return "-" if share is None else format(100 * share, form)


def interval(of: Estimate | Score, form: str = ".1f") -> str:
    return f"[{percent(of.low, form)}, {percent(of.high, form)}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A text table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def table(scores: Scores) -> str:
    """For the terminal."""
    rows = [[" ".join(cell.split()) for cell in row] for row in _table_rows(scores)]
    return "\n".join([_head(scores), aligned(rows), *_notes(scores)])


def markdown(scores: Scores) -> str:
    """To paste."""
    notes = [f"- {note}" for note in _notes(scores)]
    return "\n".join([_head(scores), "", *piped(_table_rows(scores)), "", *notes]) + "\n"


def piped(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, the first row its header, the first column to the left."""
    header, *others = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return [header, "|---|" + "---:|" * (len(rows[0]) - 1), *others]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", r"\\").replace("|", r"\|")


def _head(scores: Scores) -> str:
    told = [f"{scores.benchmark} {scores.split}: {scores.n} items"]
    told.append(f"labels {scores.labels.hash} ({scores.labels.version})")
    told += [f"{name} {scores.settings[name]}" for name in ("prompt", "mode") if scores.settings.get(name) is not None]
    return " ".join(", ".join(told).split())


def _table_rows(scores: Scores) -> list[list[str]]:
    """Header, sub-tasks, groups, averages; what the run has no baseline for gets no column."""
    baselines = [name for name in ("blind", "text") if getattr(scores, name) is not None]
    header = ["points", "n", "accuracy", "95 %", "unresolved", "chance", "majority"]
    rows = [header + [column for name in baselines for column in (name, f"over {name}")]]
    groups = {f"{kind}: {name}": s for kind, group in scores.groups.items() for name, s in group.items()}
    for name, s in (scores.tasks | groups).items():
        row = [name, str(s.n), percent(s.accuracy), interval(s), str(s.unresolved), percent(s.chance)]
        beside = [
            cell for b in baselines for cell in (percent(getattr(s, b)), _gain_cell(getattr(s, f"gain_over_{b}")))
        ]
        rows.append([*row, percent(s.majority), *beside])
    for kind, mean in (("macro", scores.macro), ("micro", scores.micro)):
        name = f"{kind} (official)" if kind == scores.official else kind
        row = [name, str(scores.n), percent(mean.value), interval(mean), str(scores.unresolved)]
        for level in (scores.chance, scores.majority):
            row.append(percent(getattr(level, kind, None)))
        for b in baselines:  # the gain over all items is a micro average
            gain = getattr(scores, f"gain_over_{b}") if kind == "micro" else None
            row += [percent(getattr(getattr(scores, b), kind)), _gain_cell(gain)]
        rows.append(row)
    for name, apart in scores.apart.items():
        n = str(scores.n - scores.tasks[name].n)
        for kind, mean in (("macro", apart.macro), ("micro", apart.micro)):
            row = [f"{kind} without {name}", n, percent(mean.value), interval(mean)]
            rows.append(row + [""] * (len(rows[0]) - len(row)))
    return rows


def _gain_cell(gain: Estimate | None) -> str:
    return "" if gain is None else f"{percent(gain.value, '+.2f')} {interval(gain, '+.1f')}"


def _notes(scores: Scores) -> list[str]:
    notes = [f"unresolved {scores.unresolved}, failed {scores.failed}, cut off {scores.cut} of {scores.n} items"]
    if scores.unresolved + scores.failed:
        bounds = ", ".join(
            f"{kind} {percent(b.low)} to {percent(b.high)}"
            for kind, b in (("macro", scores.bounds.macro), ("micro", scores.bounds.micro))
        )
        notes.append(f"unresolved and failed counted wrong (as above) or at chance: {bounds}")
    return [" ".join(note.split()) for note in [*notes, *(f"warning: {w}" for w in scores.warnings)]]
