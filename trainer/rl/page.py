"""A page of completions with their pictures, rewards and advantages, for a person to look at.

It runs nothing, loads nothing and escapes every text (data/shards/page.py). So that a browser can open it whatever the
rollout, it has at most GROUPS groups of COMPLETIONS completions and PICTURES pictures, none of these beyond 320 pixels,
and of a text LONGEST characters.
"""

import logging
import math
from pathlib import Path
from typing import NamedTuple

from data.pictures import decode
from data.sample import IMAGE_MARK, LETTERS, DataError, Sample
from data.shards.page import render
from data.shards.part import replace
from data.shards.preview import Thumbnail, thumbnail
from trainer.rl.group import Group

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
GROUPS, COMPLETIONS, PICTURES = 12, 32, 8
LONGEST = 2000
DROPPED = {
    "invalid": "fewer than two of its completions have a reward",
    "filtered": "its mean accuracy is not between the limits of rl.groups",
    "equal": "its rewards are equal",
}


class Shown(NamedTuple):
    """A group in the page."""

    group: Group
    pictures: list[Thumbnail | str]  # a text says why one cannot be shown
    question: str
    choices: list[tuple[str, str]]  # with their letters

    @property
    def sample(self) -> Sample:
        return self.group.prompt.sample


def write_page(folder: Path, number: int, groups: list[Group]) -> Path | None:
    """Write the page of a rollout, whole or not at all. None: there is no room, and the training goes on."""
    path = folder / f"rollout_{number}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(path, page(number, groups).encode("utf-8", "replace"))  # a text can hold half a character
    except OSError as error:
        log.warning("%s: not written (%s); training goes on without this page", path, error)
        return None
    return path


def page(number: int, groups: list[Group]) -> str:
    style, body = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.html"))
    return render(
        style,
        body,
        title=f"Rollout {number}",
        shown=[_shown(group) for group in groups[:GROUPS]],
        total=len(groups),
        most=COMPLETIONS,
        dropped=DROPPED,
        clip=clip,
        figure=figure,
        signed=signed,
        latents=latents,
        finite=math.isfinite,
    )


def _shown(group: Group) -> Shown:
    sample = group.prompt.sample
    pictures = [_picture(content, n) for n, content in enumerate(sample.images[:PICTURES], 1)]
    first, *others = sample.text.question.split(IMAGE_MARK)
    question = first + "".join(f"[picture {n}]{part}" for n, part in enumerate(others, 1))
    return Shown(group, pictures, question, list(zip(LETTERS, sample.text.choices or (), strict=False)))


def _picture(content: bytes, number: int) -> Thumbnail | str:
    try:
        return thumbnail(decode(content, f"picture {number} cannot be shown"))
    except DataError as error:  # a run may allow larger ones than a page
        return str(error)


def clip(text: str) -> str:
    """The text without its middle, where it is too long."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} [… {len(text) - 2 * half:,} characters …] {text[-half:]}"


def figure(value: float) -> str:
    """Whole numbers as they are, others with four decimals, or two digits where these would hide them."""
    whole = math.isfinite(value) and value == round(value)
    form = "z,.0f" if whole else ".4f" if not abs(value) < 0.001 else ".1e"
    return f"{value:{form}}".replace("-", "−")


def signed(value: float) -> str:
    """An advantage; 0 alone has no sign."""
    return f"{value:+.3f}".replace("-", "−") if value else "0"


def latents(at: int | None) -> str:
    """Where a completion's latents stand."""
    if at is None:
        return "none"
    return f"after token {at}" if at else "before"
