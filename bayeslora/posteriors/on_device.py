"""What a posterior keeps on the device that predictions are made on, for as long as an evaluation takes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class OnDevice:
    """A posterior whose factors are computed and moved once an evaluation, not once a batch.

    Whoever predicts with it gives the memory back at the end, see :func:`release`.
    """

    _placed: tuple[Hashable, Any] | None = None

    def placed(self, place: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` made for a place (a device, a dtype), until another place is asked for.

        Args:
            place: What tells places apart, for example a device and a dtype.
            make: Makes it for that place.
        """
        if self._placed is None or self._placed[0] != place:
            self._placed = place, make()
        return self._placed[1]  # type: ignore[no-any-return]

    def release(self) -> None:
        """Give back the memory of the device that predictions were made on."""
        self._placed = None


def release(posterior: Any) -> None:
    """Give back what a posterior, or any component of a mixture, keeps on a device."""
    for component in getattr(posterior, "components", [posterior]):
        if isinstance(component, OnDevice):
            component.release()
