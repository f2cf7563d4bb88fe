"""Runners of the cluster that this process cannot connect to: since when, why, and whether there is a way around."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from actorhub.core.address import RunnerAddress
from actorhub.core.clock import Clock
from actorhub.core.errors import ActorhubError
from actorhub.core.logger import get_logger
from actorhub.engine.singletons.health import UnreachedRunner

_log: Final = get_logger("actorhub.peers")

REPORT_AFTER: Final = 4.0
"""Seconds after which a runner that cannot be reached is reported. One that is dead has left the cluster by then."""
_MOST_NAMED: Final = 3
"""Runners that one error names."""
_NO_WAY: Final = (
    "no other runner passes calls on to it either, so they wait: check the network to it, and the address that it "
    "advertises"
)


class _Failing(msgspec.Struct):
    runner: RunnerAddress
    since: float
    """Monotonic seconds."""
    reason: str
    is_reported: bool = False


class Unreached:
    """Keeps who cannot be connected to. Logs once when that has lasted for a while, and once when it is over."""

    def __init__(self, clock: Clock, via: Callable[[RunnerAddress], str]) -> None:
        """Prepare.

        Args:
            clock: Source of time.
            via: Returns through whom a runner is reached that is not reached directly; empty: through nobody.
        """
        self._clock = clock
        self._via = via
        self._failing: dict[str, _Failing] = {}
        """By address."""

    def on_failed(self, runner: RunnerAddress, error: ActorhubError) -> bool:
        """Take note of a failed attempt to connect; return whether it is the first of a series."""
        now = self._clock.monotonic()
        failing = self._failing.get(runner.address)
        if failing is None or failing.runner != runner:
            self._failing[runner.address] = _Failing(runner, now, str(error))
            return True
        failing.reason = str(error)
        # Of an address without an incarnation nobody has said that a runner lives there.
        if runner.incarnation and not failing.is_reported and now - failing.since >= REPORT_AFTER:
            failing.is_reported = True
            via = self._via(runner)
            _log.warning(
                "the runner at %s has not been reached for %.1f s (%s): %s",
                runner.address,
                now - failing.since,
                failing.reason,
                f"calls go to it through the runner at {via}" if via else _NO_WAY,
            )
        return False

    def on_reached(self, address: str) -> None:
        """Take note of a direct link to the runner at that address."""
        failing = self._failing.pop(address, None)
        if failing is not None and failing.is_reported:
            seconds = self._clock.monotonic() - failing.since
            _log.warning("the runner at %s is reached again, after %.1f s", address, seconds)

    def keep(self, addresses: Iterable[str]) -> None:
        """Forget the runners at all other addresses: they are no longer members of the cluster."""
        kept = set(addresses)
        for address in [address for address in self._failing if address not in kept]:
            if self._failing.pop(address).is_reported and kept:
                _log.info("the runner at %s, which was not reached, is no longer a member of the cluster", address)

    def reported(self) -> Sequence[UnreachedRunner]:
        """Return those that have been reported, by address."""
        return tuple(self._of(failing) for _, failing in sorted(self._failing.items()) if failing.is_reported)

    def text(self, owner: RunnerAddress | None) -> str:
        """Return, for the error of a call that waited for an owner, who was not reached; empty: nobody is missing.

        Args:
            owner: The owner, if it is known.
        """
        now = self._clock.monotonic()
        missing = [
            f"{failing.runner.address} for {now - failing.since:.1f} s ({failing.reason})"
            for _, failing in sorted(self._failing.items())
            if (owner is None or failing.runner.address == owner.address) and not self._via(failing.runner)
        ]
        more = len(missing) - _MOST_NAMED
        return ", ".join(missing[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

    def _of(self, failing: _Failing) -> UnreachedRunner:
        return UnreachedRunner(
            address=failing.runner.address,
            incarnation=failing.runner.incarnation,
            since=self._clock.time() - (self._clock.monotonic() - failing.since),
            reason=failing.reason,
            via=self._via(failing.runner),
        )
