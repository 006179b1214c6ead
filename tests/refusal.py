"""What tests of errors share."""

from collections.abc import Callable

import pytest

from data.sample import DataError, UserError


def refusal(action: Callable[[], object], kind: type[UserError] = DataError) -> str:
    """The text of the error of this very kind that an action ends in, which is one line."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert text and "\n" not in text
    return text
