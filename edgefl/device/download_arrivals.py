"""What arrives changes what the download machine knows: of the link, of its blocks, of what is still under way. Pure."""

from dataclasses import replace

from edgefl.device.download_state import LARGEST_WINDOW, LONG_ANSWER, Download


def afresh(state: Download, away: float, now: float) -> Download:
    """A new connection, after so many seconds without: what was asked for and what was under way is lost."""
    repeated = state.repeated
    for index in state.asked:
        repeated |= 1 << index
    late_at, began = state.late_at + away, state.began + away
    state = replace(state, asked={}, silences=0, resume_at=None, late_at=late_at, began=began)
    return replace(state, since=now, heard=0, repeated=repeated)


def measured(state: Download, sent: int, now: float) -> Download:
    """A block of the file has come; how far apart they come is how slow the link is, if there is a queue before it."""
    gap = now - state.arrived_at
    return replace(state, gap=gap if state.gap == 0.0 else 0.5 * (state.gap + gap), arrived_at=now, heard=sent)


def duplicate(state: Download, index: int) -> Download:
    """A block that was here already; nobody else is to blame if it was asked for twice."""
    own = state.repeated >> index & 1
    counts = replace(state.counts, duplicate=state.counts.duplicate + 1)
    return replace(state, counts=counts, unwanted=state.unwanted + (not own), repeated=state.repeated & ~(1 << index))


def credit(state: Download, index: int, now: float) -> Download:
    """A good block: it is there; if it was asked for, the link has shown how fast it is."""
    asked = state.asked.get(index)
    window, answer_time = state.window, state.answer_time
    if asked is not None:
        took = now - asked.first
        answer_time = took if answer_time == 0.0 else 0.875 * answer_time + 0.125 * took
        if took > 2.0 * LONG_ANSWER:
            window = max(1.0, window - 1.0 / window)
        elif took < LONG_ANSWER and now - asked.last <= state.patience:
            window = min(LARGEST_WINDOW, window + 1.0 / window)
    counts = replace(state.counts, stored=state.counts.stored + 1, unasked=state.counts.unasked + (asked is None))
    return replace(
        state,
        have=state.have | 1 << index,
        asked={i: a for i, a in state.asked.items() if i != index},
        window=window,
        answer_time=answer_time,
        heard_at=now,
        gift_at=now if asked is None else state.gift_at,
        silences=0,
        resume_at=None,
        counts=counts,
    )
