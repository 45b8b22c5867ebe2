"""Which members of an ensemble still train, which have stopped and which have failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.models.in_place import write_weights

TRAINING, STOPPED, FAILED = "training", "stopped", "failed"


class MemberStates:
    """Status and early stopping of every member, by its place in the stack.

    Args:
        ids: Ids of the members.
        patience: Number of validations without a better likelihood after which a member stops; None never stops one.
    """

    def __init__(self, ids: Sequence[int], patience: int | None) -> None:
        self.ids, self.patience = tuple(ids), patience
        self.status = [TRAINING] * len(self.ids)
        self.reason = [""] * len(self.ids)
        self.best_nll = [math.inf] * len(self.ids)
        self.waited = [0] * len(self.ids)
        self.best: dict[str, Tensor] = {}  # weights of the best validation so far, where patience asks for them

    def places(self, *status: str) -> tuple[int, ...]:
        """Places of the members that have one of the given statuses."""
        return tuple(place for place, own in enumerate(self.status) if own in status)

    def fail(self, place: int, reason: str) -> None:
        """Note that a member can train no further.

        Args:
            place: The member's place in the stack.
            reason: Why it stopped, in words.
        """
        self.status[place], self.reason[place] = FAILED, reason

    def validated(self, place: int, nll: float, weights: Mapping[str, Tensor]) -> None:
        """Take note of a member's validation; out of patience, it returns to its best weights and stops.

        Args:
            place: Of the member.
            nll: Its negative log-likelihood on the validation questions.
            weights: The stacked parameters, ``[M, *shape]``; the member's are overwritten where it stops.
        """
        if self.patience is None or self.status[place] != TRAINING:
            return
        if not self.best:
            self.best = {name: value.detach().clone() for name, value in weights.items()}
        if nll < self.best_nll[place]:
            self.best_nll[place], self.waited[place] = nll, 0
            _copy(weights, self.best, place)
            return
        self.waited[place] += 1
        if self.waited[place] >= self.patience:
            self.status[place], self.reason[place] = STOPPED, f"no better likelihood in {self.patience} validations"
            _copy(self.best, weights, place)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain types and tensors."""
        return {
            "ids": list(self.ids),
            "status": list(self.status),
            "reason": list(self.reason),
            "best_nll": list(self.best_nll),
            "waited": list(self.waited),
            "best": dict(self.best),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            UsageError: the state is that of other members.
        """
        if list(state["ids"]) != list(self.ids):
            raise UsageError(
                f"the checkpoint holds members {list(state['ids'])}, members asks for {list(self.ids)}; give members "
                "as they were when it was written (others join in a run of their own)"
            )
        self.status, self.reason = list(state["status"]), list(state["reason"])
        self.best_nll, self.waited = list(state["best_nll"]), list(state["waited"])
        self.best = dict(state["best"])


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor], place: int) -> None:
    own = {name: value.detach()[place] for name, value in target.items()}
    write_weights(own, {name: value[place] for name, value in source.items()})
