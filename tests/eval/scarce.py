"""Answers where memory is scarce, really: for test_answer.py, in a process of its own.

python -m tests.eval.scarce EXPORT MEGABYTES SETTINGS < jobs
"""

import base64
import json
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from data.sample import Sample, Text
from eval.answer import Answerer, Planner
from eval.models import find_model
from eval.settings import Settings

OPTIONS = ("A", "(B)", "the third picture")


def packed(samples: Iterable[Sample]) -> str:
    rows = [[s.key, s.text.question, [base64.b64encode(image).decode() for image in s.images]] for s in samples]
    return json.dumps(rows)


def unpacked(text: str) -> list[Sample]:
    return [
        Sample(
            key=key,
            text=Text(question=question, answer="A", task="t", source="s"),
            images=tuple(map(base64.b64decode, images)),
        )
        for key, question, images in json.loads(text)
    ]


def size() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    torch.set_num_threads(1)
    folder, megabytes, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    model = find_model(folder)
    given = model.effective(Settings(**settings))
    planner, answerer = Planner(model, given), Answerer(model, given, "cpu")
    options = OPTIONS if given.mode == "score" else ()
    jobs = [planner.job(sample, options) for sample in unpacked(sys.stdin.read())]
    list(answerer.stream([[min(jobs, key=lambda job: job.cost)]]))  # all that is set up once
    resource.setrlimit(resource.RLIMIT_AS, (size() + megabytes * 2**20, resource.RLIM_INFINITY))
    found = [p.model_dump() for batch in answerer.stream(planner.batches(jobs)) for p in batch]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"found": found, "most": answerer.most}))


if __name__ == "__main__":
    main()
