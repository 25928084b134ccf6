"""What a device does with each frame: what it runs, whether it sends, who stands in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.endtoend.record import WHOLE
from benchmarks.endtoend.table import Table
from splitrt.core import control
from splitrt.core.control import Rules
from splitrt.core.plan import Local, Option

SILENCE = 1.5  # seconds, of a link whose plan is pinned
INFLIGHT = 8  # frames that a server lets a device have on their way


@dataclass(frozen=True, slots=True)
class Step:
    """One frame's way. seconds: to run first.  exit: the plan that answers here, or stands in."""

    seconds: float
    exit: str | None
    option: Option | None = None
    hit: float = 0.0
    probe: bool = False


class Policy:
    """Answers on the device by one plan; frames that would be late are left out, unless all are.

    A dropped frame is a step without exit and option. deadline: seconds.
    """

    def __init__(self, table: Table, *, plan: str, deadline: float = 0.25) -> None:
        self.table, self._deadline = table, deadline
        seconds = table.whole if plan == WHOLE else table.exits[plan][0]
        self._step = Step(seconds, plan)

    def begin(self, frame: int, left: float, now: float, chance: float) -> Step:
        """What is done with a frame that has so many seconds left."""
        late = left < self._step.seconds <= self._deadline
        return Step(0.0, None) if late else self._step

    def stays(self, frame: int, step: Step) -> bool:
        """Whether the exit's answer is good enough, now that it is there."""
        return step.option is None

    def ready(self) -> bool:
        """Whether a frame can be sent now."""
        return False

    def sent(self, seq: int, size: float, now: float) -> None: ...

    def answered(self, seq: int, now: float, server: float) -> None: ...

    def broke(self, now: float) -> bool:
        """Whether the connection is given up now, with all that waits in it."""
        return False

    def beat(self, now: float, chance: float) -> bool:
        """Whether a try to connect goes out now."""
        return False

    def ponged(self, took: float, now: float) -> None: ...


class Linked(Policy):
    """With a connection that is given up after silence and opened again, as an Edge's is."""

    def __init__(self, table: Table, rules: Rules) -> None:
        self.table, self._up = table, True
        self.state = control.start(table.options, rules=rules)

    def stays(self, frame: int, step: Step) -> bool:
        return False

    def ready(self) -> bool:
        return self.state.up and len(self.state.flights) < INFLIGHT

    def sent(self, seq: int, size: float, now: float) -> None:
        self.state = control.sent(self.state, seq, size, now)

    def answered(self, seq: int, now: float, server: float) -> None:
        self.state = control.answered(self.state, seq, now, server=server)

    def broke(self, now: float) -> bool:
        self.state = control.silent(self.state, now)
        fell, self._up = self._up and not self.state.up, self.state.up
        return fell

    def beat(self, now: float, chance: float) -> bool:
        due, self.state = control.beat(self.state, now, chance)
        return due

    def ponged(self, took: float, now: float) -> None:
        self.state = control.ponged(self.state, took, now)
        self._up = True


class Pinned(Linked):
    """One plan whatever happens. hedged: its exit stands in at the deadline.

    Without, a picture that goes as it is costs the device nothing.
    """

    def __init__(self, table: Table, option: Option, *, hedged: bool) -> None:
        super().__init__(table, Rules(silence=SILENCE, silence_rtts=0.0))
        if not hedged and option in table.jpegs:
            option = replace(option, head=0.0)
        exits = table.stands[option.name] if hedged else None
        self._step = Step(option.head, exits, option)

    def begin(self, frame: int, left: float, now: float, chance: float) -> Step:
        return self._step


class Steered(Linked):
    """splitrt's controller, between gate and exits, as `splitrt.edge` uses it."""

    def __init__(self, table: Table) -> None:
        super().__init__(table, Rules())
        self._soonest = min(seconds for seconds, _ in table.exits.values())

    def begin(self, frame: int, left: float, now: float, chance: float) -> Step:
        here = self._here(left)
        answers = self.table.exits[here.exit][1]
        if not self.table.options[0].bins:
            answers = self.table.unsure
        decision, self.state = control.decide(
            self.state,
            self.table.options,
            Local(answers, self._soonest),
            left=left,
            now=now,
            chance=chance,
        )
        option = decision.option
        if option is not None:
            exits = self.table.stands[option.name]
            return Step(option.head, exits, option, decision.hit, decision.probe)
        return here if decision.action == "local" else Step(0.0, None)

    def stays(self, frame: int, step: Step) -> bool:
        if step.option is None or step.exit is None:
            return True
        verdict = self.table.judged(step.exit, frame)
        return not control.confirms(self.state, step.option, step.hit, verdict)

    def _here(self, left: float) -> Step:
        """The best exit that there is time for."""
        ranked = sorted(self.table.exits.items(), key=lambda item: -item[1][1])
        fits = [(name, seconds) for name, (seconds, _) in ranked if seconds < left]
        name, seconds = fits[0] if fits else (ranked[-1][0], ranked[-1][1][0])
        return Step(seconds, name)
