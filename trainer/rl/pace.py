"""How far a rollout is, for the watch, and whether it goes on: a rank that is told to stop lets the others know."""

from trainer.signals import Stop
from trainer.watch import Watch


class Pace:
    """Of the rollout before one step. Asked at every token, it costs nothing."""

    def __init__(self, stop: Stop, watch: Watch, step: int) -> None:
        self.stop, self.watch, self.step, self.tokens = stop, watch, step, 0

    def at(self, phase: str, part: int = 0) -> None:
        """Where this rank is."""
        self.watch.at(self.step, phase, part)

    def token(self) -> bool:
        """Another token of a batch is drawn. Whether to go on."""
        self.tokens += 1
        self.at("rollout", self.tokens)
        if self.stop.reason is not None:
            self.watch.ask_to_stop()
        return not self.watch.stop_asked
