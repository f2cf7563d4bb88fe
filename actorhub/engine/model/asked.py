"""What a durable run has asked and told so far, so that each repetition of the run asks for the same messages.

A durable message that a durable run sends while it runs gets a key: who sends it, in which step, what it says to whom,
and which one of equal ones it is. A later run of the same code makes the same keys, and so finds the messages of the
earlier one and their replies, whether values or errors.

Of equal messages the lowest free number is next. A number is taken by a message whose end the run has learned, or still
waits for. One whose end it has not learned (its caller's time was over, it was cancelled) gives its number back: who
sends the same again wants that one's reply, not a second message.

What a run does between its sends need not be the same in each of its repetitions, but what it sends is taken to be. If
it sends concurrently, equal messages may change places; that makes no difference, since they are equal.
"""

import heapq
import weakref
from collections.abc import Sequence
from typing import Final, TypeAlias

from actorhub.core.errors import ActorhubError, EntityError, HandlerFailed, MalformedMessage, MessageCancelled
from actorhub.core.idempotency import run_key
from actorhub.core.logger import get_logger
from actorhub.core.texts import causes_of
from actorhub.storage.message_ports import MessageKey

_log: Final = get_logger("actorhub.asked")

MOST_DIFFERENT: Final = 10_000
"""Messages, equal ones aside, of which one run keeps account; further ones get no key."""

_ENDS: Final = (EntityError, HandlerFailed, MalformedMessage, MessageCancelled)
"""The errors that are a durable message's reply; others say that it is not known, or that it was not accepted."""
_Twins: TypeAlias = tuple[str, str, str, str, bytes]
"""What equal messages have in common: type, id and handler that they are for, the step, and the payload's hash."""


class Asked:
    """The durable messages that a run sent in one scope: that of a message, or of a `run` between two saves."""

    def __init__(self, scope: Sequence[str], what: str) -> None:
        """Prepare.

        Args:
            scope: Who may send the same messages again; see `run_key`.
            what: What runs, for the log.
        """
        self.scope = scope
        self._what = what
        self._sent: dict[_Twins, int] = {}
        """The highest number that was given out."""
        self._free: dict[_Twins, list[int]] = {}
        """Numbers that were given back; each list is a heap."""
        self._failed: weakref.WeakValueDictionary[MessageKey, ActorhubError] = weakref.WeakValueDictionary()
        """The errors that ended messages, as long as the run has them."""
        self._has_warned = False

    def send(self, entity: tuple[str, str], handler: str, *, step: str, payload: bytes) -> "AskedMessage | None":
        """Return the account of a message that is about to be sent; `None` if it is one too many to get a key."""
        twins = (*entity, handler, step, payload)
        free = self._free.get(twins)
        if free:
            number = heapq.heappop(free)
        else:
            sent = self._sent.get(twins, 0)
            if sent == 0 and len(self._sent) == MOST_DIFFERENT:
                self._warn(f"{entity[0]}.{handler}")
                return None
            number = self._sent[twins] = sent + 1
        key = MessageKey(*entity, handler, run_key(self.scope, step, payload, number))
        return AskedMessage(self, key, twins, number)

    def blamed_for(self, error: BaseException) -> Sequence[MessageKey]:
        """Return the keys of the messages whose errors are what a run failed with, or the cause of that."""
        if not self._failed:
            return ()
        ends = {id(end): key for key, end in self._failed.items()}
        blamed: list[MessageKey] = []
        causes, seen = [error], set[int]()
        while causes:
            cause = causes.pop()
            if id(cause) in seen:
                continue
            seen.add(id(cause))
            if (key := ends.get(id(cause))) is not None:
                blamed.append(key)
                continue
            causes += causes_of(cause)
        return blamed

    def forget_failed(self) -> None:
        """Blame no message a second time."""
        self._failed.clear()

    def give_back(self, twins: _Twins, number: int) -> None:
        """Have the next message of these twins get this number."""
        heapq.heappush(self._free.setdefault(twins, []), number)

    def on_failed(self, key: MessageKey, error: ActorhubError) -> None:
        """A message ended with an error that the run is about to see."""
        self._failed[key] = error

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s sends more than %d different messages (the last to %s), so a repetition of the run would send a "
                "part of them again: let it tell another handler to do the rest, or save in between",
                *(self._what, MOST_DIFFERENT, what),
            )


class AskedMessage:
    """One message of a run, on the side of the run that sends it."""

    __slots__ = ("_asked", "_number", "_twins", "key")

    def __init__(self, asked: Asked, key: MessageKey, twins: _Twins, number: int) -> None:
        self._asked = asked
        self.key = key
        self._twins = twins
        self._number = number

    def on_failed(self, error: ActorhubError) -> None:
        """Note how the message ended, or that this is not known."""
        if isinstance(error, _ENDS):
            self._asked.on_failed(self.key, error)
        else:
            self.give_back()

    def give_back(self) -> None:
        """Its sender no longer waits: who sends the same again gets its reply."""
        self._asked.give_back(self._twins, self._number)
