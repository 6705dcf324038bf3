"""What devices send to the server: each message goes to whom it concerns, and what wants an answer gets it.

Model: the last level of a topic says what kind of message it is; for each kind there is one owner of what follows (`Inbox`,
`BlockServer`, `Training`, `Rollouts`, `RenewalDesk`). Every byte is counted for the model that it concerns.

Rules:

* What a device sends cannot stop the server: a message that does not decode, does not belong or does not fit is counted and
  dropped.
* A receipt leaves after the commit. When the disk is full or the database is locked, there is no receipt, and the device sends
  again.
"""

from collections.abc import Callable

from edgefl.errors import MessageError, PeerError
from edgefl.server.blocks import BlockServer
from edgefl.server.books import Books
from edgefl.server.catalogue import Catalogue
from edgefl.server.expected import Expected
from edgefl.server.inbox import Inbox
from edgefl.server.renewal import RenewalDesk
from edgefl.server.rollouts import Rollouts
from edgefl.server.speech import Speech
from edgefl.wire import topics
from edgefl.wire.files import Want
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import Report, State
from edgefl.wire.rounds import Receipt, UpdatePart


class Reception:
    """Takes what devices send.

    Args:
        catalogue: what is served, and to whom.
        books, rollouts, expected: told who is there and how far devices are.
        blocks: sends what is asked for.
        speech: says the answers.
        complain: told what is wrong with a message.
        renewals: who gives devices their next certificate; None if nobody does.
        wall: seconds since 1970.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        books: Books,
        rollouts: Rollouts,
        expected: Expected,
        blocks: BlockServer,
        speech: Speech,
        complain: Callable[[str], None],
        *,
        renewals: RenewalDesk | None,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._books = books
        self._rollouts = rollouts
        self._expected = expected
        self._blocks = blocks
        self._speech = speech
        self._complain = complain
        self._renewals = renewals
        self._wall = wall
        self._clock = clock
        self._inbox = Inbox()
        self._on = {"state": self._on_state, "want": self._on_want, "update": self._on_update, "report": self._on_report}
        self._on["renew"] = self._on_renew

    def take(self, topic: str, payload: bytes) -> str:
        """Let a message have its effect.

        Returns:
            The model that it concerned, whose round may be due now; empty for none.

        Raises:
            StoreError, FleetError: it was in order, but cannot be written down now.
        """
        model = ""
        try:
            device, kind = topics.parse_up(topic)
            if device not in self._catalogue.profiles:
                raise MessageError(f"{device} is no valid device of this fleet")
            model = self._on[kind](device, payload)
        except PeerError as error:
            self._complain(f"dropped a message on {topic[:80]}: {error}")
            self._books.traffic.incident("messages refused")
        finally:
            self._books.traffic.up(model, len(payload))
        return model

    def _on_state(self, device: str, payload: bytes) -> str:
        if not payload:
            return ""  # a retained state that was cleared
        state = decode(payload, State)
        self._books.presence.state(device, state, self._wall())
        self._expected.heard(device, online=state.online)
        self._rollouts.state(device, state)
        return state.models[0].model if state.models else ""

    def _on_renew(self, device: str, payload: bytes) -> str:
        answer = self._renewals.heard(device, payload) if self._renewals else None
        if answer is not None:
            self._speech.answer("", topics.certificate(device), encode(answer))
        return ""

    def _on_want(self, device: str, payload: bytes) -> str:
        return self._blocks.wanted(device, decode(payload, Want), self._clock())

    def _on_report(self, device: str, payload: bytes) -> str:
        report = decode(payload, Report)
        self._books.presence.report(device, report, self._wall())
        self._rollouts.report(device, report)
        if report.error:
            self._complain(f"{device}: {report.model} failed: {report.error}")
        return report.model

    def _on_update(self, device: str, payload: bytes) -> str:
        head = decode(payload, UpdatePart)
        answer = self._catalogue.examine(device, head)
        if answer is None:
            data = self._inbox.add(device, head)
            # No answer when a command has just stopped the training: the device will ask again.
            answer = None if data is None else self._catalogue.trainings[head.model].receive(device, head, data)
        elif head.part < head.parts - 1:
            answer = None  # one answer for all parts
        if answer is not None:
            self._answer(device, answer)
        return head.model

    def _answer(self, device: str, answer: Receipt) -> None:
        if not answer.stored:
            name = f"{answer.model}@{answer.version} round {answer.round}"
            self._complain(f"refused an update of {device} for {name}: {answer.reason}")
            self._books.traffic.incident("updates refused")
        self._speech.answer(answer.model, topics.receipt(device), encode(answer))
