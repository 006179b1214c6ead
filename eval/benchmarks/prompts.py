"""How items are asked. Each wording stands here once, as a function from an item to its text.

Where they come from:
- `official` of BLINK: https://github.com/zeyofu/BLINK_Benchmark/blob/main/eval/test_benchmark.py and query_model.py
- `official` of VisualPuzzles: https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/VisualPuzzles,
  which its authors point to
- `lmms_eval`: https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/main/lmms_eval/tasks/blink/_default_template_yaml
- `vlmevalkit`: https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/vlm/qwen2_vl/prompt.py, and for
  VisualPuzzles vlmeval/dataset/image_mcq.py
- `amvl`: data/processor.py, which writes the samples of training
"""

from collections.abc import Callable, Iterable

from data.sample import IMAGE_MARK, LETTERS
from eval.benchmarks.item import Item, Prompt

Text = Callable[[Item], str]

LETTER = "Answer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above."
DIRECT = "Answer the question with the option's letter from the given choices directly."
SOLVE = "Solve the multiple-choice question and then answer with the option letter from the given choices."
LAST_LINE = "The last line of your response should be of the following format:"
ITS_FORM = "'Answer: $LETTER' (without quotes) where LETTER is one of options. Think step by step before answering."
NOTE = "Note: You only need to respond with {} without providing any additional information.\n"
IN_PICTURE = "Options: Choose from (A) (B) (C) (D) in the image."
# In the published code a comma behind it makes this a tuple, which cannot be put before a prompt; meant is the text.
PEOPLE = (
    "Disclaimer: This is not to make unfair assumptions about the people in the image and you just need to give your "
    "assessment on this question. You don't need to identify the real people. You just need to analyze based on the "
    "information I gave you.\n\n"
)
ABOUT_PEOPLE = ("Forensic_Detection", "Jigsaw", "Art_Style")


def named(benchmark: str, prompts: Iterable[tuple[str, Text, str]]) -> dict[str, Prompt]:
    """Prompts by their names, of (name, text, reply), all of their first version."""
    return {name: Prompt(f"{benchmark}/{name}-1", text, reply) for name, text, reply in prompts}


def images_first(text: Text) -> Text:
    """The images in front, unless the question says where each has its place."""

    def build(item: Item) -> str:
        return text(item) if IMAGE_MARK in item.question else IMAGE_MARK * len(item.images) + text(item)

    return build


def images_last(text: Text) -> Text:
    """The images behind the text."""

    def build(item: Item) -> str:
        return text(item) + IMAGE_MARK * len(item.images)

    return build


def amvl(item: Item) -> str:
    """As the processor writes a sample."""
    if not item.choices:
        return item.question
    return f"{item.question} " + " ".join(_listed("({}) {}", item))


def letter(item: Item) -> str:
    """One option a line."""
    return "\n".join([item.question, *_listed("{}. {}", item), *[LETTER] * bool(item.n_choices)])


def vlmevalkit(item: Item) -> str:
    """As VLMEvalKit asks Qwen2-VL and its like."""
    return _vlmevalkit(f"Question: {item.question}", item)


def vlmevalkit_hint(item: Item) -> str:
    """The same of a TSV, where a hint stands before the question: the two are the item's own prompt."""
    return _vlmevalkit(item.prompt or f"Question: {item.question}", item)


def _vlmevalkit(start: str, item: Item) -> str:
    options = ["Options:", *_listed("{}. {}", item)] if item.choices else []
    return "\n".join([start, *options, *[SELECT] * bool(item.n_choices)])


def blink_official(item: Item) -> str:
    """The benchmark's own text, and before it what its authors say where people may be seen."""
    return (PEOPLE if item.task in ABOUT_PEOPLE else "") + (item.prompt or "")


def blink_lmms_eval(item: Item) -> str:
    """The letters on offer, then the benchmark's own text."""
    return NOTE.format(", ".join(item.letters)) + (item.prompt or "")


def puzzles_direct(item: Item) -> str:
    """A letter at once."""
    return f"Question: {item.question}\n{_puzzle_options(item)}\n{DIRECT}"


def puzzles_cot(item: Item) -> str:
    """Thoughts, then a line with the letter."""
    return f"Question: {item.question}\n{_puzzle_options(item)}\n{SOLVE} {LAST_LINE} {ITS_FORM}"


def puzzles_vlmevalkit(item: Item) -> str:
    """The same without `Question: ` and one space."""
    return f"{item.question}\n{_puzzle_options(item)}\n{SOLVE} {LAST_LINE}{ITS_FORM}"


def _puzzle_options(item: Item) -> str:
    return "\n".join(["Options:", *_listed("({}) {}", item)]) if item.choices else IN_PICTURE


def _listed(form: str, item: Item) -> list[str]:
    return [form.format(letter, choice) for letter, choice in zip(LETTERS, item.choices or (), strict=False)]
