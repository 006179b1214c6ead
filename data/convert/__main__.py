"""Public data sets and common layouts to shards, read as a stream.

python -m data.convert SOURCE ... --out FOLDER        python -m data.convert SOURCE -h
"""

import argparse
import sys
from importlib import import_module

SOURCES = {
    "llava": "LLaVA-style JSON or JSON lines with an image folder",
    "parquet": "parquet as Hugging Face writes it, with columns of your choice",
    "vlmevalkit": "a VLMEvalKit TSV",
    "visual_cot": "Visual CoT",
    "refocus": "ReFocus",
    "cogcom": "CogCoM",
    "zebra_cot": "Zebra-CoT",
    "monet": "Monet-SFT-125K",
    "easy_vqa": "the PyPI package easy-vqa",
}


def main() -> None:
    """Command line: only the named source is imported, and nothing before it is named."""
    parser = argparse.ArgumentParser(
        prog="python -m data.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    named = next((name for name in sys.argv[1:] if not name.startswith("-")), "")
    for name, purpose in SOURCES.items():
        command = commands.add_parser(name, help=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == named:
            from data.shards.write import add_arguments

            module = import_module(f"data.convert.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            add_arguments(command)
    arguments = parser.parse_args()

    from data.convert.row import load
    from data.sample import UserError
    from data.shards.write import options_of, write

    try:
        shards = write(module.of_arguments(arguments), arguments.out, options_of(arguments), prepare=load)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.out}: {sum(shard.samples for shard in shards)} samples in {len(shards)} shards")


if __name__ == "__main__":
    main()
