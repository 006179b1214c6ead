"""Compare two evaluations of the same benchmark, item by item:

    python eval/compare.py runs/a/eval/blink runs/b/eval/blink

Each is a folder with results.jsonl and scores.json, or the results.jsonl itself. Prints both averages with paired
intervals, every sub-task, and a verdict; eval/paired.py says how they are made.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.paired import Comparison
    from eval.scores import Scores


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eval/compare.py", description="compare two evaluations item by item")
    parser.add_argument("a", metavar="A", type=Path, help="folder of an evaluation, or its results.jsonl")
    parser.add_argument("b", metavar="B", type=Path, help="the other; differences are B - A")
    parser.add_argument("--common", action="store_true", help="where items differ, compare those that both have")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")
    parser.add_argument("--draws", type=int, default=10_000, help="of the bootstrap (100 to 1000000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments = parser.parse_args()
    if not 100 <= arguments.draws <= 1_000_000:
        parser.error(f"--draws {arguments.draws}: not from 100 to 1000000")
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: below 0")
    return arguments


def main() -> None:
    arguments = parse()
    from data.sample import UserError

    try:
        run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(arguments: argparse.Namespace) -> None:
    """The whole comparison."""
    from eval.paired import compare
    from eval.results import read_results

    (results_a, scores_a), (results_b, scores_b) = _place(arguments.a), _place(arguments.b)
    notes, official = [], "micro"
    if scores_a and scores_b:
        _same_questions(arguments.a, scores_a, arguments.b, scores_b)
        notes, official = _notes(scores_a, scores_b), scores_a.official
    else:
        notes = ["no scores.json beside both results: benchmark, split and settings are not checked"]
    a, b = read_results(results_a), read_results(results_b)
    found = compare(a, b, official, arguments.common, arguments.draws, arguments.seed)
    print("\n".join([f"A: {arguments.a}", f"B: {arguments.b}", *(f"note: {note}" for note in notes), table(found)]))
    if arguments.json:
        _write(arguments.json, found.model_dump_json(indent=1) + "\n")


def _place(path: Path) -> "tuple[Path, Scores | None]":
    """(its results, its scores if there are any); a folder has both."""
    from eval.scores import read_scores

    if path.is_dir():
        return path / "results.jsonl", read_scores(path / "scores.json")
    beside = path.with_name("scores.json")
    return path, read_scores(beside) if beside.is_file() else None


def _same_questions(path_a: Path, a: "Scores", path_b: Path, b: "Scores") -> None:
    from data.sample import DataError

    for name, one, other in (
        ("benchmark", a.benchmark, b.benchmark),
        ("split", a.split, b.split),
        ("label set", a.labels.hash, b.labels.hash),
    ):
        if one != other:
            raise DataError(f"{path_a}: {name} {one}, but {path_b}: {other}; evaluate both with the same {name}")


def _notes(a: "Scores", b: "Scores") -> list[str]:
    """Settings that differ: the difference of the scores may be theirs."""
    from eval.results import FREE

    names = sorted((a.settings.keys() | b.settings.keys()) - set(FREE))
    missing = "(not set)"
    pairs = [(name, a.settings.get(name, missing), b.settings.get(name, missing)) for name in names]
    notes = [f"{name} differs: A {one}, B {other}" for name, one, other in pairs if one != other]
    return [" ".join(note.split()) for note in notes]


def table(found: "Comparison") -> str:
    """For the terminal, in points."""
    from eval.tables import aligned, interval, percent

    rows = [["points", "n", "A", "B", "B - A", "95 %", "only A", "only B", "p", "p (Holm)", "detectable"]]
    for name, t in found.tasks.items():
        row = [" ".join(name.split()), str(t.n), percent(t.accuracy_a), percent(t.accuracy_b)]
        row += [percent(t.difference, "+.2f"), "", str(t.only_a), str(t.only_b)]
        rows.append([*row, f"{t.p:.2g}", f"{t.p_holm:.2g}", percent(t.detectable, ".1f")])
    for kind, a, b, difference, p in (
        ("macro", found.macro_a, found.macro_b, found.macro, found.macro_p),
        ("micro", found.micro_a, found.micro_b, found.micro, found.micro_p),
    ):
        name = f"{kind} (official)" if kind == found.official else kind
        row = [name, str(found.n), percent(a), percent(b), percent(difference.value, "+.2f")]
        row += [interval(difference, "+.2f"), str(found.only_a), str(found.only_b), f"{p:.2g}", ""]
        rows.append([*row, percent(found.detectable, ".1f") if kind == "micro" else ""])
    lines = [aligned(rows), f"both right {found.both}, neither {found.neither}"]
    if found.missing_a or found.missing_b:
        lines.append(f"left out: {found.missing_b} items that only A has, {found.missing_a} that only B has")
    lines.append(
        f"p: exact McNemar; macro: bootstrap within sub-tasks, {found.draws} draws, seed {found.seed}. "
        "detectable: what this many items show with a power of 80 %"
    )
    return "\n".join([*lines, found.verdict, found.caution])


def _write(path: Path, text: str) -> None:
    from data.sample import DataError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--json {path}: cannot be written ({error.strerror}); name a file in a folder") from error


if __name__ == "__main__":
    main()
