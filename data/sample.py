"""The schema of a sample: images, a question, an answer. Every source is converted to it.

In a shard a sample is `KEY.0.png`, `KEY.1.jpg`, ... and `KEY.json` with the text fields below.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGE_MARK = "<image>"  # where an image stands in a question; without any, images stand before the text
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class UserError(Exception):
    """Something a user can mend. Its text is one line that names the place and the mend."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))  # names and reasons from outside may hold line ends


class DataError(UserError):
    """Input that cannot be used."""


class Text(BaseModel):
    """What `KEY.json` holds. With choices, the answer is the letter of the right one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]
    choices: tuple[str, ...] | None = None
    rationale: str | None = None
    task: str
    source: str

    @model_validator(mode="after")
    def _answer_is_a_letter(self) -> "Text":
        if self.choices is not None and len(self.choices) > len(LETTERS):
            raise ValueError(f"{len(self.choices)} choices, more than the {len(LETTERS)} letters")
        if self.choices is not None and self.answer not in list(LETTERS[: len(self.choices)]):
            raise ValueError(f"answer {self.answer!r} is not a letter of the {len(self.choices)} choices")
        return self


class Sample(BaseModel):
    """One question with its encoded images (PNG, JPEG, ... as bytes, in order)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    text: Text
    images: tuple[bytes, ...] = ()
    origin: str = ""  # the shard it was read from, for messages
    epoch: int = 0  # how often the stream has handed it out before

    @model_validator(mode="after")
    def _images_have_places(self) -> "Sample":
        marks = self.text.question.count(IMAGE_MARK)
        if marks and marks != len(self.images):
            raise ValueError(f"{len(self.images)} images for {marks} {IMAGE_MARK} marks in the question")
        return self

    @property
    def place(self) -> str:
        """Where the sample is, for messages."""
        return f"{self.origin}: {self.key}" if self.origin else self.key
