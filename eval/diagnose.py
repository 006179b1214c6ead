"""Does a checkpoint do what its objective claims? Everything about its latents, in one page:

    python eval/diagnose.py --checkpoint runs/quickstart
    python eval/diagnose.py --checkpoint DIR --data SHARDS --limit 500

The gap between training and inference, leakage of the answer through the posterior, whether answers depend on latents
and latents on the picture, their geometry, and attention by layer. Answers are ranked, not written: a question has its
options as candidates, or, without any, answers that other items of its task have. Writes diagnosis.json, items.jsonl,
diagnosis.md and diagnosis.html, and adds the numbers to the MLflow run that trained. With --history the gap of every
checkpoint of the run is measured too.
"""

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="eval/diagnose.py", description="diagnose the latents of a checkpoint")
    add = found.add_argument
    add("--checkpoint", type=Path, required=True, help="a run, or a checkpoint or export of it")
    add("--step", type=int, metavar="N", help="of the run; default: its newest")
    add("--history", action="store_true", help="the gap at every other step of the run as well")
    add("--data", help="shard set of held-out items; default: the run's data.heldout")
    add("--limit", type=int, metavar="N", help="about N items, spread over the set; default 500")
    add("--out", type=Path, help="folder of the results; default: eval/ in the run, or in runs/ without one")
    add("--seed", type=int, metavar="N", help="of drawn latents, of candidates and of what replaces what; default 0")
    add("--tokens", type=int, metavar="N", help="of a batch, about, arms counted; default 16384")
    add("--min-pixels", type=int, metavar="N", help="smaller images are enlarged to this many; default: the model's")
    add("--max-pixels", type=int, metavar="N", help="larger images are shrunk to this many; default: the model's")
    add("--dtype", choices=("auto", "fp32", "bf16"), help="default auto: bf16 on a GPU, fp32 elsewhere")
    add("--attention", choices=("auto", "flash", "varlen", "sdpa"), help="of the language model; default auto")
    add("--vision-attention", choices=("auto", "flash", "varlen", "sdpa"), help="of the vision tower; default auto")
    return found


def main() -> None:
    arguments = parser().parse_args()
    from data.sample import UserError
    from eval.diagnosis.diagnosis import run

    try:
        run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
