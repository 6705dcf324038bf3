"""The outbox file: whole or absent, and never more of it in memory than is asked for."""

import hashlib
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.errors import StoreError
from edgefl.store import outbox
from edgefl.store.outbox import OutboxEntry, peek, read_entry, read_memory, read_residual, read_update, write_outbox


def entry_of(update, residual, **changes):
    """An entry that describes these bytes."""
    fields = {
        "version": 3, "variant": "w1-fp32", "round": 7, "layout": "0123456789abcdef", "samples": 40, "loss_before": 2.0,
        "loss_after": 1.5, "sha256": hashlib.sha256(update).digest(), "update_length": len(update),
        "residual_length": len(residual),
    }  # fmt: skip
    return OutboxEntry(**{**fields, **changes})


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=5000), st.binary(max_size=5000))
def test_what_is_written_is_read(tmp_path_factory, update, residual):
    """Entry, update and residual come back as they were, each by itself."""
    path = tmp_path_factory.mktemp("outbox") / "outbox"
    entry = entry_of(update, residual)
    write_outbox(path, entry, update, residual)
    assert read_entry(path) == entry
    assert read_update(path) == update
    assert read_residual(path) == (entry, residual)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=500), st.binary(max_size=500), st.binary(max_size=500))
def test_residual_and_velocity_come_back_together(tmp_path_factory, update, residual, velocity):
    """The memory is one moment: both vectors, and which weights and rounds they belong to."""
    path = tmp_path_factory.mktemp("outbox") / "outbox"
    entry = entry_of(update, residual, velocity_length=len(velocity), weights=bytes(32), before=5)
    write_outbox(path, entry, update, residual, velocity)
    assert read_memory(path) == (entry, residual, velocity)
    assert read_residual(path) == (entry, residual)
    assert read_update(path) == update
    assert peek(path) == entry


def test_a_file_of_before_there_was_a_velocity_is_read(tmp_path):
    """An upgrade of the software loses no residual: the old format is still one of ours."""
    path, update, residual = tmp_path / "outbox", b"the update", b"the residual"
    fields = [3, "w1-fp32", 7, "0123456789abcdef", 40, 2.0, 1.5, hashlib.sha256(update).digest(), len(update), len(residual)]
    header = msgspec.msgpack.encode(fields)
    data = b"EFO1" + len(header).to_bytes(4, "little") + header + update + residual
    path.write_bytes(data + hashlib.sha256(data).digest())
    assert read_memory(path) == (entry_of(update, residual), residual, b"")
    assert read_entry(path).weights == b""


def test_a_file_without_velocity_is_what_older_software_reads(tmp_path):
    """Without momentum correction the format has not changed: going back to older software loses no residual either."""
    write_outbox(tmp_path / "outbox", entry_of(b"x", b"y", weights=bytes(32), before=2), b"x", b"y")
    assert (tmp_path / "outbox").read_bytes()[:4] == b"EFO1"
    write_outbox(tmp_path / "outbox", entry_of(b"x", b"y", velocity_length=1), b"x", b"y", b"z")
    assert (tmp_path / "outbox").read_bytes()[:4] == b"EFO2"


def test_peeking_believes_the_header_and_nothing_else(tmp_path):
    """What is chosen not to be deleted may lie in a damaged file; what is no header says nothing."""
    path, entry = tmp_path / "outbox", entry_of(b"update", b"residual")
    write_outbox(path, entry, b"update", b"residual")
    path.write_bytes(path.read_bytes()[:-40])
    assert (peek(path), read_entry(path)) == (entry, None)
    path.write_bytes(b"EFO1\x05\x00\x00\x00\xc1\xc1\xc1\xc1\xc1")
    assert peek(path) is None
    assert peek(tmp_path / "nothing") is None


def test_every_cut_and_every_flipped_bit_makes_it_absent(tmp_path):
    """A torn or damaged file is none: nothing of it is sent, nothing of it is added to a delta."""
    path, update, residual, velocity = tmp_path / "outbox", b"the update", b"the residual", b"the velocity"
    write_outbox(path, entry_of(update, residual, velocity_length=len(velocity)), update, residual, velocity)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))] + [whole + b"\0"]
    damaged += [whole[:i] + bytes([whole[i] ^ 1 << (i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
    for data in damaged:
        path.write_bytes(data)
        assert read_entry(path) is None
        assert read_residual(path) is None
        assert read_memory(path) is None
        with pytest.raises(StoreError, match="missing or damaged"):
            read_update(path)


@pytest.mark.parametrize(
    "data", [b"", b"EFO1", b"EFO1\xff\xff\xff\xff", b"EFO2" + bytes(100), b"EFO1\x05\x00\x00\x00\xc1\xc1\xc1\xc1\xc1"]
)
def test_what_is_no_outbox_is_absent(tmp_path, data):
    """Other formats, absurd lengths, garbage, a folder, nothing at all."""
    path = tmp_path / "outbox"
    assert read_entry(path) is None
    path.write_bytes(data)
    assert read_entry(path) is None
    assert read_entry(tmp_path) is None


def test_lengths_that_lie_allocate_nothing(tmp_path):
    """A header that promises terabytes is compared with the file before anything is read."""
    path = tmp_path / "outbox"
    write_outbox(path, entry_of(b"x", b"", update_length=1 << 42), b"x", b"")
    assert read_residual(path) is None
    write_outbox(path, entry_of(b"x", b"", update_length=2, residual_length=(1 << 63) - 1), b"x", b"")
    assert read_entry(path) is None


def test_reading_the_update_does_not_load_the_residual(tmp_path):
    """The agent's memory stays small however large the model is."""
    path, update, residual = tmp_path / "outbox", bytes(10_000), bytes(20 << 20)
    write_outbox(path, entry_of(update, residual), update, residual)
    tracemalloc.start()
    assert read_update(path) == update
    assert read_entry(path) is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    """A full disk costs the new update, not the old one."""
    path = tmp_path / "outbox"
    write_outbox(path, entry_of(b"old", b""), b"old", b"")

    def full(*_):
        raise StoreError("disk full")

    monkeypatch.setattr(outbox, "write_parts", full)
    with pytest.raises(StoreError):
        write_outbox(path, entry_of(b"new", b""), b"new", b"")
    assert read_update(path) == b"old"
