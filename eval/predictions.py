"""predictions.jsonl: what a model said to every item, appended as it comes, so that a killed run goes on."""

import base64
import contextlib
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from data.sample import DataError


class Prediction(BaseModel):
    """Of one item with one model, prompt and setting; all of these are in its id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    key: str
    replies: tuple[str, ...] = ()  # one, or as many as votes
    finish: tuple[str, ...] = ()  # why each ended: end, stop or length
    scores: tuple[float, ...] | None = None  # log-likelihood of every option, nats
    prior: str | None = None  # the prior's mean [k, d], packed
    failed: str | None = None  # why the item could not be run


def pack(z: Tensor) -> str:
    """Latents [k, d] as text, to the last bit: base64 of fp32 values, little-endian."""
    return base64.b64encode(z.float().cpu().numpy().astype("<f4").tobytes()).decode()


def unpack(text: str, slots: int) -> Tensor:
    """[k, d], of `slots` rows."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)).view(slots, -1)


class Predictions:
    """The file, held by one program at a time. A line torn by a kill is cut off, and its item run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{path}: another evaluation writes to it; wait for it, or name another --out") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); name another --out") from error
        try:
            self.known = {prediction.id: prediction for prediction in self._whole_lines()}
        except DataError:
            self._file.close()
            raise

    def _whole_lines(self) -> Iterable[Prediction]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                yield Prediction.model_validate_json(line)
            except ValidationError as error:
                what = error.errors()[0]["msg"]
                raise DataError(f"{self.path}: line {number} is no prediction ({what}); take the line out") from error

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Append those that are not there yet, and wait until they are on the disk."""
        new = {p.id: p for p in predictions if p.id not in self.known}
        try:
            _write(self._file, new.values())
        except OSError as error:
            with contextlib.suppress(OSError):  # it would write what is left
                self._file.close()
            raise self._full(error) from error
        self.known |= new

    def forget_failures(self) -> None:
        """Items that could not be run are run again: all other lines are written anew, all or nothing."""
        stay = {name: p for name, p in self.known.items() if p.failed is None}
        if len(stay) == len(self.known):
            return
        part = self.path.with_name(self.path.name + ".part")
        try:
            with part.open("wb") as file:
                _write(file, stay.values())
            self._file.close()
            part.replace(self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._full(error) from error
        self.__init__(self.path)  # type: ignore[misc]

    def close(self) -> None:
        self._file.close()

    def _full(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot be written ({error.strerror}); make room and start again")


def _write(file: IO[bytes], predictions: Iterable[Prediction]) -> None:
    """Lines, which are on the disk when this returns."""
    lines: list[dict[str, Any]] = [p.model_dump(exclude_defaults=True) for p in predictions]
    file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    file.flush()
    os.fsync(file.fileno())
