"""Which updates a training lets in, as far as their heads tell: before their content is put together, decoded or stored.

Model: the round machine judges by device and round (`server.rounds`); here stands what else a head gives away. Every head gets
one of three answers: a receipt that the update is stored, a receipt that it is refused and why, or none: its content is wanted.

Rules: an update that is stored is never refused later: a repetition is answered from the ledger. A head is believed in nothing
that costs memory: more parts than the largest update of the variant has are refused.
"""

import math
import sqlite3
from collections.abc import Mapping

from edgefl.codec.update import max_length
from edgefl.server.rounds import Accept, Refuse, Rounds, judge
from edgefl.store.standings import excluded
from edgefl.store.updates import is_stored
from edgefl.wire.rounds import PART_SIZE, Receipt, UpdatePart


class Admission:
    """Of one training. Owned by the server's one thread.

    Args:
        database: of the fleet.
        of_profile: name of the variant that the version has for each profile.
        sizes: coordinates of an update, by variant.
    """

    def __init__(self, database: sqlite3.Connection, of_profile: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        self._database = database
        self._of_profile = of_profile
        self._sizes = sizes

    def examine(self, state: Rounds, device: str, profile: str, head: UpdatePart) -> Receipt | None:
        """What the head of an update of this version alone decides; None when its content is wanted.

        Args:
            state: of the training's rounds.
            device: the sender.
            profile: the sender's.
            head: any part of the update.

        Raises:
            StoreError: the database cannot be read.
        """
        match judge(state, (device, head.round)):
            case Accept() if excluded(self._database, device):
                return receipt(head, "this device is excluded; an operator can reinstate it")
            case Accept():
                reason = self._unfit(profile, head)
                return receipt(head, reason) if reason else None
            case verdict:
                if is_stored(self._database, device, head):
                    return receipt(head)
                other = f"another update of this device for round {head.round} is stored already"
                return receipt(head, verdict.reason if isinstance(verdict, Refuse) else other)

    def _unfit(self, profile: str, head: UpdatePart) -> str:
        """Why an update cannot be used, as far as its head tells; empty if it can."""
        expected = self._of_profile.get(profile)
        if head.variant != expected:
            return f"variant {head.variant!r} is not the one of profile {profile}, which is {expected or 'none'}"
        if not (math.isfinite(head.loss_before) and math.isfinite(head.loss_after)):
            return "the loss is not finite: training has diverged"
        most = -(-max_length(self._sizes[expected]) // PART_SIZE)
        return f"{head.parts} parts; the largest update has {most}" if head.parts > most else ""


def receipt(head: UpdatePart, reason: str = "") -> Receipt:
    """The receipt for an update: stored, or refused for a reason."""
    return Receipt(head.model, head.version, head.round, head.sha256, stored=not reason, reason=reason[:500])
