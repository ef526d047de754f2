# SPDX-License-Identifier: Apache-2.0
"""One virtual router's election (RFC 9568 6.4): Initialize, Backup, Active.

House rules. All changes of state live here. Time is an argument. What shall be done comes back as acts, in
order; addresses, NICs and bytes are somebody else's business. Taking is two steps: ``due`` says that
nobody is Active, ``take`` follows when the node has something to bind (a probe may come in between).

    Initialize --start--> Backup --due, take--> Active --stop--> Initialize
                            ^                      |
                            +-- better advert, ----+
                                lapse, give_up, resign

An Active that resigns goes on answering until its successor speaks up; if nobody does, it stays Active.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, Literal

from holdfast_speaker.units import MILLISECOND_US, NEVER_US, SECOND_US
from holdfast_speaker.vrrp.timing import active_down_us, lease_us, skew_us

_COPIES_OF_LONGER_INTERVAL: Final = 3
_PENANCE_US: Final = 10 * SECOND_US
_TOLERANCE_US: Final = 60 * SECOND_US
_RESIGNS_AGAIN: Final = 2  # more would starve the takeover: each one restarts somebody's Skew_Time
_EXTENDED_US: Final = SECOND_US  # how long the lease is re-armed without an advert


class State(StrEnum):
    INITIALIZE = "Initialize"
    BACKUP = "Backup"
    ACTIVE = "Active"


class Act(Enum):
    ADVERTISE = "advertise"  # an advert with the present priority
    RESIGN = "resign"  # an advert with priority 0
    YIELD = "yield"  # the addresses are not ours any more
    CEDE = "cede"  # somebody takes over: stop answering, release what he lists
    KEEP = "keep"  # nobody took over what we offered: we go on
    EXTEND = "extend"  # re-arm the kernel's lease, for no advert does
    RETAKE = "retake"  # the kernel's lease has run out, and nobody else is there
    DEFEND = "defend"  # somebody else claimed the router: announce the whole burst again


Acts = tuple[Act, ...]
_NOTHING: Final[Acts] = ()
_ADVERTISE: Final[Acts] = (Act.ADVERTISE,)


@dataclass(frozen=True, slots=True)
class Settings:
    """``priority`` 1 to 254; the interval is what our own adverts say; ``jiffy_us``: the kernel's tick.

    ``heir``: an Active that resigns means us, so that no Skew_Time need pass. ``bypassed``: it means another,
    who gets an interval's time before us; the resigned one serves on meanwhile.
    """

    priority: int
    interval_us: int
    failback: Literal["Never", "Immediate", "Delayed"] = "Never"
    failback_delay_us: int = 0
    jiffy_us: int = 0
    heir: bool = False
    bypassed: bool = False


class Router:
    """The machine. ``deadline_us`` is when ``wake`` must be called next (NEVER_US: not by itself)."""

    __slots__ = (
        "_advert_at_us",
        "_answered_at_us",
        "_backup_since_us",
        "_cadence_us",
        "_down_at_us",
        "_extended_until_us",
        "_lesser_at_us",
        "_linger",
        "_meek_until_us",
        "_resign_again_us",
        "_resigning_until_us",
        "_resigns_left",
        "_sent_at_us",
        "_tolerant_until_us",
        "_unheard",
        "deadline_us",
        "preempting",
        "resigned",
        "resigning",
        "settings",
        "state",
        "unheeded",
    )

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = State.INITIALIZE
        self.deadline_us = NEVER_US
        self.resigned = False  # the last word heard from an Active was priority 0
        self.preempting = False  # an Active of lower priority was heard, and not obeyed
        self._cadence_us = settings.interval_us  # between our adverts; lags behind a longer interval
        self._linger = 0
        self._down_at_us = self._advert_at_us = NEVER_US
        self._sent_at_us = self._answered_at_us = self._backup_since_us = 0
        self.resigning = False  # Active, and offering it to the others
        self._resigning_until_us = self._extended_until_us = self._resign_again_us = 0
        self._resigns_left = 0
        self.unheeded = 0  # adverts of a lesser Active in a row, in spite of ours
        self._lesser_at_us = -NEVER_US
        self._meek_until_us = 0  # no preemption until then
        self._unheard = False  # we lapsed, and have heard nobody since
        self._tolerant_until_us = 0  # lateness is no reason to lapse until then: nobody else is there

    # --- Initialize and back --------------------------------------------------------------------

    def start(self, now_us: int, *, down_at_us: int) -> None:
        """Initialize to Backup; nobody heard until ``down_at_us`` means nobody is Active."""
        self.resigned = self.preempting = False
        self._backup(now_us, down_at_us)

    def stop(self) -> Acts:
        """To Initialize; an Active says so with priority 0 before it lets go."""
        was, self.state, self.deadline_us = self.state, State.INITIALIZE, NEVER_US
        return (Act.RESIGN, Act.YIELD) if was is State.ACTIVE else _NOTHING

    def configure(self, settings: Settings, now_us: int) -> Acts:
        """New priority, interval or failback, used from now on.

        An Active's longer interval is first advertised, three times at the old cadence: a Backup that
        missed it would call us silent.
        """
        old, self.settings = self.settings, settings
        if self.preempting and self.state is State.BACKUP and not self._preempts(now_us):
            self.preempting = False
            self._down_at_us = now_us + active_down_us(settings.priority, settings.interval_us)
            self.deadline_us = self._down_at_us
        if settings.interval_us == old.interval_us:
            return _NOTHING
        if self.state is State.ACTIVE and self._late(now_us):
            return _NOTHING  # judged by the old cadence; wake() makes it lapse
        if self.state is not State.ACTIVE or settings.interval_us < self._cadence_us:
            self._cadence_us, self._linger = settings.interval_us, 0
        else:
            self._linger = _COPIES_OF_LONGER_INTERVAL - 1
        return self._advertise(now_us) if self.state is State.ACTIVE else _NOTHING

    # --- Backup ---------------------------------------------------------------------------------

    def due(self, now_us: int) -> bool:
        """Whether this Backup has waited long enough: nobody is Active."""
        return self.state is State.BACKUP and now_us >= self._down_at_us

    def take(self, now_us: int) -> Acts:
        """Backup to Active; the advert comes before anything is bound, so that the old Active lets go."""
        self.state, self.resigning, self.unheeded = State.ACTIVE, False, 0
        self._cadence_us, self._linger = self.settings.interval_us, 0
        self._answered_at_us = now_us - self._cadence_us
        # A slow node that is alone would lapse, take and lapse for ever.
        self._tolerant_until_us = now_us + _TOLERANCE_US if self._unheard else 0
        return self._advertise(now_us)

    def _preempts(self, now_us: int) -> bool:
        if now_us < self._meek_until_us:
            return False  # who was too slow, or not heard, a moment ago would only be so again, and again
        match self.settings.failback:
            case "Never":
                return False
            case "Immediate":
                return True
            case "Delayed":
                return now_us - self._backup_since_us >= self.settings.failback_delay_us

    def _backup(self, now_us: int, down_at_us: int) -> None:
        self.state, self.resigning = State.BACKUP, False
        self._cadence_us, self._linger = self.settings.interval_us, 0
        self._backup_since_us = now_us
        self.deadline_us = self._down_at_us = down_at_us

    # --- both -----------------------------------------------------------------------------------

    def hear(
        self, now_us: int, *, priority: int, interval_us: int, greater: bool | None, obeyed: bool
    ) -> Acts:
        """A valid advert on our VRID from somebody else.

        ``greater``: its source is the greater one (None: a tie is not judged by this advert).
        ``obeyed``: it is the Active we follow, or we follow none.
        """
        self._unheard, self._tolerant_until_us = False, 0
        if self.state is State.BACKUP:
            self._hear_as_backup(now_us, priority, interval_us, obeyed=obeyed)
            return _NOTHING
        if self.state is State.INITIALIZE:
            return _NOTHING
        if self._late(now_us):
            acts = self._lapse(now_us)
            self._unheard = False
            self._hear_as_backup(now_us, priority, interval_us, obeyed=True)
            return acts
        own = self.settings.priority
        if priority == 0:
            return _NOTHING if self.resigning else self._answer(now_us)
        if self.resigning:
            return self._cede(now_us, interval_us)
        if priority > own or (priority == own and greater):
            # One last advert of our own tells the winner that there were two (semantics R4.3).
            return (Act.ADVERTISE, *self._cede(now_us, interval_us))
        if priority == own and greater is None:
            return _NOTHING
        self._count_lesser(now_us, interval_us)
        return (*self._answer(now_us), Act.DEFEND)

    def _cede(self, now_us: int, interval_us: int) -> Acts:
        self.resigned = self.preempting = False
        self._backup(now_us, now_us + active_down_us(self.settings.priority, interval_us))
        return (Act.CEDE,)

    def _count_lesser(self, now_us: int, interval_us: int) -> None:
        """Once in an interval, however many adverts come in it (two families, answers)."""
        since_us = now_us - self._lesser_at_us
        if since_us < interval_us // 2:
            return
        self._lesser_at_us = now_us
        self.unheeded = self.unheeded + 1 if since_us <= 3 * interval_us else 1

    def _hear_as_backup(self, now_us: int, priority: int, interval_us: int, *, obeyed: bool) -> None:
        own = self.settings.priority
        if priority == 0:
            if obeyed:
                # Never later than it was: repeated resignations must not starve the takeover.
                self.resigned = True
                wait_us = 0 if self.settings.heir else skew_us(own, interval_us)
                wait_us += interval_us if self.settings.bypassed else 0
                self._down_at_us = min(self._down_at_us, now_us + wait_us)
                self.deadline_us = self._down_at_us
        elif priority >= own or not self._preempts(now_us):
            self.resigned = self.preempting = False
            self.deadline_us = self._down_at_us = now_us + active_down_us(own, interval_us)
        else:
            self.preempting = True

    def wake(self, now_us: int) -> Acts:
        """The deadline is past. A Backup that is due stays so until it takes, or hears an Active."""
        if self.state is State.BACKUP and now_us >= self._down_at_us:
            self.deadline_us = NEVER_US
        elif self.state is State.ACTIVE and self.resigning and now_us >= self.deadline_us:
            return self._go_on_resigning(now_us)
        elif self.state is State.ACTIVE and now_us >= self._advert_at_us:
            acts: Acts = _NOTHING
            if self._late(now_us):
                if now_us >= self._tolerant_until_us:
                    return self._lapse(now_us)
                acts = (Act.RETAKE,)
            on_time_us = self._advert_at_us + self._cadence_us
            acts += self._advertise(now_us)
            if now_us < on_time_us < self._advert_at_us:  # a late wake-up must not shift all later adverts
                self.deadline_us = self._advert_at_us = on_time_us
            return acts
        return _NOTHING

    # --- Active ---------------------------------------------------------------------------------

    def give_up(self, now_us: int) -> Acts:
        """Active to Backup by our own decision: nothing could be bound, or the plan wants it."""
        self._backup(now_us, now_us + active_down_us(self.settings.priority, self.settings.interval_us))
        return (Act.RESIGN, Act.YIELD)

    def advertise(self, now_us: int) -> Acts:
        """An advert now instead of when it would be due: what it lists has changed."""
        return self._advertise(now_us)

    def resign(self, now_us: int) -> Acts:
        """An Active offers the router to the others, and goes on answering meanwhile."""
        if self.state is not State.ACTIVE or self.resigning or self._late(now_us):
            return _NOTHING
        own, interval_us = self.settings.priority, self._cadence_us
        self.resigning, self._resigns_left = True, _RESIGNS_AGAIN
        self._extended_until_us = now_us + _EXTENDED_US
        # Not longer than the lease, re-armed for the last time, lets us answer.
        at_most_us = _EXTENDED_US + 2 * interval_us
        self._resigning_until_us = now_us + min(active_down_us(own, interval_us), at_most_us)
        return self._say_resigned(now_us)

    def _say_resigned(self, now_us: int) -> Acts:
        self._sent_at_us = now_us
        self._resign_again_us = now_us + self._cadence_us * 3 // 2 if self._resigns_left else NEVER_US
        self._resigns_left -= 1
        self._await_successor(now_us)
        return (Act.RESIGN,)

    def _await_successor(self, now_us: int) -> None:
        next_us = now_us + self._cadence_us
        self.deadline_us = self._advert_at_us = min(self._resigning_until_us, self._resign_again_us, next_us)

    def _go_on_resigning(self, now_us: int) -> Acts:
        if self._late(now_us):
            return self._lapse(now_us)
        if now_us >= self._resigning_until_us:
            self.resigning = False
            self._await_successor(now_us)
            return (Act.KEEP,)
        if now_us >= self._resign_again_us:
            return self._say_resigned(now_us)
        if now_us < self._extended_until_us:
            self._sent_at_us = now_us
            self._await_successor(now_us)
            return (Act.EXTEND,)
        self._await_successor(now_us)
        return _NOTHING

    def cede(self, now_us: int) -> Acts:
        """Active to Backup because the others do not hear us, and somebody else is Active."""
        self._meek_until_us = now_us + _TOLERANCE_US
        return self._cede(now_us, self.settings.interval_us)

    def lapse(self, now_us: int) -> Acts:
        """The kernel's lease has run out: what happened meanwhile we can't know (semantics R4.1)."""
        return self._lapse(now_us) if self.state is State.ACTIVE else _NOTHING

    @property
    def serving(self) -> bool:
        """Active, and not on offer: an heir whose adverts we don't hear announces what he has taken."""
        return self.state is State.ACTIVE and not self.resigning

    @property
    def lease_us(self) -> int:
        """How long after an advert the kernel lets this Active speak."""
        return lease_us(self._cadence_us, self.settings.jiffy_us)

    def is_punctual(self, now_us: int) -> bool:
        """Active, with the last advert not longer ago than a lease."""
        return self.state is State.ACTIVE and not self._late(now_us)

    def _late(self, now_us: int) -> bool:
        """Whether the kernel has silenced us by now, and the others may soon call us silent (R4.2)."""
        return now_us - self._sent_at_us >= self.lease_us

    def _lapse(self, now_us: int) -> Acts:
        self._meek_until_us = max(self._meek_until_us, now_us + _PENANCE_US)
        self._unheard = True
        self.resigned = self.preempting = False
        self._backup(now_us, now_us + active_down_us(self.settings.priority, self.settings.interval_us))
        return (Act.YIELD,)

    def _answer(self, now_us: int) -> Acts:
        """An advert at once, but no more than four in an interval, whatever is heard."""
        if now_us - self._answered_at_us < max(self._cadence_us // 4, MILLISECOND_US):
            return _NOTHING
        self._answered_at_us = now_us
        return self._advertise(now_us)

    def _advertise(self, now_us: int) -> Acts:
        if self._linger:
            self._linger -= 1
        else:
            self._cadence_us = self.settings.interval_us
        self._sent_at_us = now_us
        self.deadline_us = self._advert_at_us = now_us + self._cadence_us
        return _ADVERTISE
