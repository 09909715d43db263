"""A made model's life, batch by batch: the commands of `perennial`, typed again until they end well."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from disturbed import oracle
from disturbed.commands import Ended, Running, answer
from disturbed.parts import Parts, away, room

#: a command that takes so long is stuck: the slowest takes seconds, and waits for stores for minutes at most
LIMIT_SECONDS = 600
#: tries that nothing disturbs; the first may still find the store that was cut off coming back
UNDISTURBED_TRIES = 4
#: share of commands that are disturbed, in a short life, of a test, all of them; and of their second tries
DISTURBED, SHORT_DISTURBED, DISTURBED_AGAIN = 0.5, 1.0, 0.3
#: for how long at most a process stands still or a store is away: longer than what a command waits for, and in a short
#: life shorter. A sixth of it is the mean
AWAY_SECONDS, SHORT_SECONDS = 25.0, 1.5
#: the part of a life in which batches come late and are only scored: what is decided depends on their order
LATE_SHARE = 0.1
#: an error that is an answer: the sensor asks again with the next batch
ANSWERS = ("NotEnoughRows: ",)


@dataclass
class Story:
    """What befell a life."""

    commands: int = 0
    tries: int = 0
    #: by name, how often
    disturbances: Counter[str] = field(default_factory=Counter)
    #: by name, how often the command did not end well then
    failed: Counter[str] = field(default_factory=Counter)
    #: most tries that one command took after the last disturbance
    most_tries: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)


class Life:
    """One life on its parts; `draw` None: nothing disturbs it."""

    def __init__(
        self, parts: Parts, made: Any, draw: random.Random | None, usual: dict[str, float], *, short: bool = False
    ) -> None:
        """`usual`: how long each command takes undisturbed, in seconds: the moments are drawn from that."""
        self.parts, self.made, self.draw, self.usual = parts, made, draw, usual
        self.away = SHORT_SECONDS if short else AWAY_SECONDS
        self.share = SHORT_DISTURBED if short else DISTURBED
        self.story = Story()
        #: after each batch of an undisturbed life
        self.seen: list[oracle.Look] = []

    def live(self, batches: int, until: float = float("inf")) -> int:
        """The first champion, then batch after batch; how many were lived before the monotonic time `until`.

        The last tenth comes late; a life that has no time for it ends before.
        """
        late = max(2, round(batches * LATE_SHARE))
        start = self.made.day(0).start.isoformat()
        self._do("retrain", "made", "--as-of", start, "--reason", "first champion")
        for number in range(batches - late):
            self._batch(self.made.day(number))
            if time.monotonic() > until:
                return number + 1
        self._late([self.made.day(number) for number in range(batches - late, batches)])
        return batches

    def usually(self) -> dict[str, float]:
        """How long each command took."""
        return {name: median(seconds) for name, seconds in self.story.seconds.items()}

    def _batch(self, day: Any) -> None:
        """Score, monitor, and do what the sensor or the rollout asks for."""
        end = day.end.isoformat()
        self._do("score", "made", day.key)
        self._do("monitor", "made", day.key, "--no-report")
        seen = answer(oracle.look, self.parts.direct, day.key)
        if seen.rollout:
            self._do("rollout", "made", "--as-of", end)
        elif seen.retrain is not None:
            reason, change = seen.retrain
            words = ["--change", change] if change else []
            self._do("retrain", "made", "--as-of", end, "--reason", reason[:80], *words)
            seen = answer(oracle.look, self.parts.direct, day.key)
        if seen.admitted is not None:
            self._do("rollout", "made", seen.admitted, "--as-of", end)
        if self.draw is None:
            self.seen.append(answer(oracle.look, self.parts.direct, day.key))

    def _late(self, days: list[Any]) -> None:
        """Batches that are scored as they come, some after newer ones."""
        order = list(days)
        if self.draw is not None:
            self.draw.shuffle(order)
            for day in order:
                if any(earlier in order[: order.index(day)] for earlier in days[days.index(day) + 1 :]):
                    self._not_there(day)
        for day in order:
            self._do("score", "made", day.key)

    def _not_there(self, day: Any) -> None:
        """Asked for before its file has come: an error, and nothing is written."""
        self.story.disturbances["late"] += 1
        with away(self.made.rows_file(day)):
            ended = self._type("score", "made", day.key)
        if ended is None or ended.code != 1:
            self._fault(f"a batch that is not there was not refused: {ended}", "score", "made", day.key)

    def look(self, *words: str) -> Ended | None:
        """A command that only looks."""
        return self._type(*words)

    # --- one command ---------------------------------------------------------------------------------------------

    def _do(self, *words: str) -> None:
        """Type a command, disturb it perhaps, and type it again until it ends well."""
        self.story.commands += 1
        chance, undisturbed = self.share, 0
        while undisturbed < UNDISTURBED_TRIES:
            self.story.tries += 1
            if self.draw is not None and self.draw.random() < chance:
                chance = DISTURBED_AGAIN
                name = self.draw.choice(sorted(self._disturbances(words)))
                self.story.disturbances[name] += 1
                ended = self._disturbances(words)[name](words)
                if _ended_well(ended):
                    return
                self.story.failed[name] += 1
                continue
            chance, undisturbed = 0.0, undisturbed + 1
            self.story.most_tries = max(self.story.most_tries, undisturbed)
            ended = self._type(*words)
            if ended is not None and _ended_well(ended):
                self.story.seconds[words[0]].append(ended.seconds)
                return
            time.sleep(1)
        told = "nothing: it was killed" if ended is None else f"exit code {ended.code}: {ended.output[-1500:]}"
        self._fault(f"does not end well in {UNDISTURBED_TRIES} tries that nothing disturbed; {told}", *words)

    def _type(self, *words: str, **limits: int | None) -> Ended | None:
        return self._wait(Running(words, self.parts.environment, **limits), words)

    def _wait(self, running: Running, words: tuple[str, ...]) -> Ended | None:
        ended = running.ended(LIMIT_SECONDS)
        if ended is None:
            self._fault(f"is still running after {LIMIT_SECONDS} s", *words)
        elif "Traceback (most recent call last)" in ended.output:
            self._fault(f"ends with a traceback: {ended.output[-1500:]}", *words)
        return ended

    def _fault(self, text: str, *words: str) -> None:
        self.story.faults.append(f"`perennial {' '.join(words)}` {text}")

    # --- disturbances --------------------------------------------------------------------------------------------

    def _disturbances(self, words: tuple[str, ...]) -> dict[str, Callable[[tuple[str, ...]], Ended | None]]:
        found: dict[str, Callable[[tuple[str, ...]], Ended | None]] = {
            "killed": self._kill,
            "frozen": self._freeze,
            "disk full": lambda words: self._type(*words, file_bytes=room(self._draw)),
        }
        for name, begin in self.parts.troubles().items():
            found[name] = lambda words, begin=begin: self._trouble(words, begin)  # type: ignore[misc]
        # a retrain that is typed again after its end is another retrain, and may decide otherwise
        if words[0] != "retrain":
            found |= {"twice at once": self._race, "twice, the first frozen": self._overtake, "again": self._again}
        return found

    @property
    def _draw(self) -> random.Random:
        assert self.draw is not None
        return self.draw

    def _pause(self) -> float:
        return min(self.away, self._draw.expovariate(6 / self.away))

    def _moment(self, words: tuple[str, ...]) -> float:
        """Some time in the command's run, a little beyond its usual end."""
        seconds = self.story.seconds.get(words[0])
        return self._draw.uniform(0, 1.1 * (median(seconds) if seconds else self.usual.get(words[0], 2.0)))

    def _kill(self, words: tuple[str, ...]) -> Ended | None:
        running = Running(words, self.parts.environment)
        running.has_ended(self._moment(words))
        running.send(signal.SIGKILL)
        return self._wait(running, words)

    def _freeze(self, words: tuple[str, ...]) -> Ended | None:
        running = Running(words, self.parts.environment)
        running.has_ended(self._moment(words))
        running.send(signal.SIGSTOP)
        time.sleep(self._pause())
        running.send(signal.SIGCONT)
        return self._wait(running, words)

    def _trouble(self, words: tuple[str, ...], begin: Callable[[random.Random], Callable[[], None]]) -> Ended | None:
        running = Running(words, self.parts.environment)
        running.has_ended(self._moment(words))
        end = begin(self._draw)
        try:
            running.has_ended(self._pause())
        finally:
            end()
        return self._wait(running, words)

    def _race(self, words: tuple[str, ...]) -> Ended | None:
        both = [Running(words, self.parts.environment) for _ in range(2)]
        return self._worse([self._wait(each, words) for each in both])

    def _overtake(self, words: tuple[str, ...]) -> Ended | None:
        first = Running(words, self.parts.environment)
        first.has_ended(self._moment(words))
        first.send(signal.SIGSTOP)
        second = Running(words, self.parts.environment)
        # the frozen one may hold a lock that the second one waits for, and gives up
        second.has_ended(self._pause())
        first.send(signal.SIGCONT)
        return self._worse([self._wait(each, words) for each in (first, second)])

    def _again(self, words: tuple[str, ...]) -> Ended | None:
        ended = self._type(*words)
        return ended if ended is None or ended.code else self._type(*words)

    @staticmethod
    def _worse(both: list[Ended | None]) -> Ended | None:
        """The one that did not end well, where one did not."""
        return next((each for each in both if each is None or each.code), both[0])


def _ended_well(ended: Ended | None) -> bool:
    return ended is not None and (ended.code == 0 or any(answer in ended.output for answer in ANSWERS))
