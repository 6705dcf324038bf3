"""Messages, blocks and topics: golden bytes, open ends, hostile bytes, and the laws of cutting a file."""

import importlib
import json
import pkgutil
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make_messages as make
from edgefl import wire
from edgefl.errors import BlockError, InputError, MessageError
from edgefl.recipe import Recipe
from edgefl.wire import blocks, topics
from edgefl.wire.files import BLOCK_SIZE, MAX_BLOCKS, Block, FileRef, Want
from edgefl.wire.messages import MAX_PACKET, decode, encode
from edgefl.wire.presence import Installed, State
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import PART_SIZE, Receipt, Task

HERE = Path(__file__).parent / "golden"
GOLDEN: dict[str, str] = json.loads((HERE / "messages.json").read_text())
MESSAGES: dict[str, msgspec.Struct] = make.MESSAGES
KINDS = sorted({type(message) for message in MESSAGES.values()}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_golden_bytes(name: str) -> None:
    """Each message still encodes to its golden bytes, and the golden bytes decode to the message."""
    assert encode(MESSAGES[name]).hex() == GOLDEN[name]
    assert decode(bytes.fromhex(GOLDEN[name]), type(MESSAGES[name])) == MESSAGES[name]


def test_the_first_vectors_decode_for_ever() -> None:
    """Messages of before layouts had roles and manifests a recipe decode, and mean what they meant."""
    first = json.loads((HERE / "messages-first.json").read_text())
    for name, data in first.items():
        message = decode(bytes.fromhex(data), type(MESSAGES[name]))
        if isinstance(message, Manifest):
            assert message.recipe == Recipe("cross-entropy", "sgd", proximal=False)
            assert [(t.role, t.personal) for t in message.layout.tensors] == [("trained", False)] * 2
        elif isinstance(message, Task):
            assert message.proximal == 0.0
        elif name not in {"round-order", "update-part"}:
            assert message == MESSAGES[name]


def test_the_second_vectors_decode_for_ever() -> None:
    """Messages of before updates were coded with a history decode, and ask for and tell of none."""
    second = json.loads((HERE / "messages-second.json").read_text())
    plain = msgspec.structs.replace(
        make.TASK, by_layer=False, sampled=False, context=False, price=0.0, correction=0.0, rate="fixed", loss=0.0, biased=False
    )
    changed = {
        "task": plain,
        "round-order": msgspec.structs.replace(MESSAGES["round-order"], task=plain, differences=()),
        "update-part": msgspec.structs.replace(MESSAGES["update-part"], before=0),
    }
    for name, data in second.items():
        assert decode(bytes.fromhex(data), type(MESSAGES[name])) == changed.get(name, MESSAGES[name])


def test_the_third_vectors_decode_for_ever() -> None:
    """Messages of before versions were tried, assigned and fetched in other ways decode, and ask for none of it."""
    for name, data in json.loads((HERE / "messages-third.json").read_text()).items():
        assert decode(bytes.fromhex(data), type(MESSAGES[name])) == MESSAGES[name]


def test_the_fourth_vectors_decode_for_ever() -> None:
    """Requests and blocks of before blocks said when they were sent decode, and say nothing of it."""
    for name, data in json.loads((HERE / "messages-fourth.json").read_text()).items():
        assert decode(bytes.fromhex(data), type(MESSAGES[name])) == MESSAGES[name]


def test_the_fifth_vectors_decode_for_ever() -> None:
    """Manifests of before variants were run at the push decode, and say that this one was not."""
    for name, data in json.loads((HERE / "messages-fifth.json").read_text()).items():
        assert decode(bytes.fromhex(data), type(MESSAGES[name])) == MESSAGES[name]
    assert not MESSAGES["manifest"].fit.peak_bytes


def test_the_sixth_vectors_decode_for_ever() -> None:
    """Tasks and recipes of before rounds weighed what exits learn of each other decode, with the weight 1 that it had."""
    for name, data in json.loads((HERE / "messages-sixth.json").read_text()).items():
        assert decode(bytes.fromhex(data), type(MESSAGES[name])) == MESSAGES[name]
    assert (make.TASK.mutual, MESSAGES["manifest"].recipe.mutual) == (1.0, False)


def test_every_message_has_a_golden_vector() -> None:
    """A message that is added without a golden vector is noticed."""
    parts = {Installed}  # travels inside State only
    modules = [importlib.import_module(f"edgefl.wire.{found.name}") for found in pkgutil.iter_modules(wire.__path__)]
    values = [value for module in modules for value in vars(module).values()]
    structs = {value for value in values if isinstance(value, type) and issubclass(value, msgspec.Struct)}
    own = {kind for kind in structs if kind.__module__.startswith("edgefl.wire.")}
    assert own - parts == set(KINDS)
    assert set(GOLDEN) == set(MESSAGES)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_newer_sender_is_understood(name: str) -> None:
    """Fields that a newer version appends are skipped."""
    fields = msgspec.msgpack.decode(encode(MESSAGES[name]))
    longer = msgspec.msgpack.encode([*fields, "new", {"a": [1, 2]}])
    assert decode(longer, type(MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_older_sender_is_understood_exactly_where_there_are_defaults(name: str) -> None:
    """Fields with defaults may be missing at the end; without a default it is a MessageError."""
    kind = type(MESSAGES[name])
    fields = msgspec.msgpack.decode(encode(MESSAGES[name]))
    needed = len(kind.__struct_fields__) - len(kind.__struct_defaults__)
    for count in range(len(fields)):
        data = msgspec.msgpack.encode(fields[:count])
        if count < needed:
            with pytest.raises(MessageError):
                decode(data, kind)
        else:
            assert encode(decode(data, kind))


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_truncated_message_is_refused(name: str) -> None:
    """Every proper prefix of a message is a MessageError."""
    data = encode(MESSAGES[name])
    for length in range(len(data)):
        with pytest.raises(MessageError):
            decode(data[:length], type(MESSAGES[name]))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), kind=st.sampled_from(KINDS))
def test_junk_is_a_message_error_or_a_valid_message(data: bytes, kind: type[msgspec.Struct]) -> None:
    """Arbitrary bytes give MessageError or a message, never another exception."""
    try:
        message = decode(data, kind)
    except MessageError:
        return
    assert isinstance(message, kind)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(MESSAGES)), position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_never_escapes(name: str, position: int, value: int) -> None:
    """A message with one byte changed decodes or is a MessageError; what decodes can be encoded again."""
    data = bytearray(encode(MESSAGES[name]))
    data[position % len(data)] = value
    try:
        message = decode(bytes(data), type(MESSAGES[name]))
    except MessageError:
        return
    assert isinstance(encode(message), bytes)


@pytest.mark.parametrize("kind", KINDS)
def test_lying_lengths_and_deep_nesting_are_refused_cheaply(kind: type[msgspec.Struct]) -> None:
    """Announced lengths of 4 billion allocate nothing, and 100,000 nested arrays exhaust no stack."""
    fields = len(kind.__struct_fields__)
    tracemalloc.start()
    for head in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ):
        with pytest.raises(MessageError):
            decode(head, kind)
        for count in range(fields):
            good = next(m for m in MESSAGES.values() if type(m) is kind)
            kept = [msgspec.msgpack.encode(value) for value in msgspec.msgpack.decode(encode(good))[:count]]
            with pytest.raises(MessageError):
                decode(b"\xdc" + fields.to_bytes(2, "big") + b"".join(kept) + head, kind)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    deep = msgspec.msgpack.decode(encode(next(m for m in MESSAGES.values() if type(m) is kind)))
    packed = b"".join(msgspec.msgpack.encode(value) for value in deep)
    with pytest.raises(MessageError):
        decode(b"\xdc" + (len(deep) + 1).to_bytes(2, "big") + packed + b"\x91" * 100_000 + b"\x01", kind)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Want, [b"x" * 31, 0, b"\1"]),
        (Want, [b"x" * 32, MAX_BLOCKS, b"\1"]),
        (Want, [b"x" * 32, 0, b""]),
        (Want, [b"x" * 32, 0, b"\1" * 65]),
        (Want, [b"x" * 32, -1, b"\1"]),
        (Want, [b"x" * 32, 0, "text"]),
        (Block, [b"x" * 16, 0, b"x" * (BLOCK_SIZE + 1)]),
        (Block, [b"x" * 16, 0, b""]),
        (State, [1 << 54, True]),
        (Receipt, ["", 1, 1, b"x" * 32, True]),
        (Receipt, ["m" * 41, 1, 1, b"x" * 32, True]),
        (Receipt, ["m", 0, 1, b"x" * 32, True]),
        (FileRef, ["weights", b"x" * 32, 0, [b"x" * 16]]),
        (FileRef, ["weights", b"x" * 32, 5, []]),
    ],
)
def test_values_out_of_bounds_are_refused(kind: type[msgspec.Struct], fields: list[object]) -> None:
    """Every length and range in the types is enforced."""
    with pytest.raises(MessageError, match=kind.__name__):
        decode(msgspec.msgpack.encode(fields), kind)


def test_packet_limit_holds_both_ways() -> None:
    """Nothing larger than a packet is encoded or decoded."""
    many = tuple(bytes(16) for _ in range(MAX_PACKET // 16))
    with pytest.raises(MessageError, match="too large"):
        encode(FileRef("weights", bytes(32), len(many) * BLOCK_SIZE, many))
    with pytest.raises(MessageError, match="too large"):
        decode(bytes(MAX_PACKET + 1), State)


def test_a_full_block_and_a_full_part_fit_a_packet() -> None:
    """The largest block and the largest update part, with the longest names, stay within a packet."""
    assert len(encode(Block(bytes(16), MAX_BLOCKS - 1, bytes(BLOCK_SIZE)))) < BLOCK_SIZE + 64
    part = make.MESSAGES["update-part"]
    longest = msgspec.structs.replace(part, model="m" * 40, variant="v" * 40, data=bytes(PART_SIZE))
    assert len(encode(longest)) < MAX_PACKET


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 5 * BLOCK_SIZE), seed=st.integers(0, 255))
def test_blocks_put_together_are_the_file(length: int, seed: int) -> None:
    """The blocks of a file pass their check, have the promised lengths, and make up the file; any flipped bit is found."""
    data = bytes([seed]) * length
    ref = blocks.check_ref(blocks.file_ref("weights", data))
    cut = [data[i * BLOCK_SIZE :][: blocks.block_length(ref, i)] for i in range(len(ref.blocks))]
    assert b"".join(cut) == data
    for index, block in enumerate(cut):
        blocks.check_block(ref, index, block)
        flipped = bytes([block[0] ^ 1]) + block[1:]
        for bad in (flipped, block[:-1], block + b"x"):
            with pytest.raises(BlockError):
                blocks.check_block(ref, index, bad)
    for index in (-1, len(cut)):
        with pytest.raises(BlockError, match="does not exist"):
            blocks.check_block(ref, index, cut[0])


def test_description_that_contradicts_itself_is_refused() -> None:
    """A length that does not go with the number of blocks is a MessageError."""
    ref = blocks.file_ref("weights", bytes(BLOCK_SIZE + 1))
    for length in (BLOCK_SIZE, 2 * BLOCK_SIZE + 1):
        with pytest.raises(MessageError, match="described wrongly"):
            blocks.check_ref(msgspec.structs.replace(ref, length=length))


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, MAX_BLOCKS - 512), offsets=st.sets(st.integers(0, 511), min_size=1, max_size=40))
def test_want_says_exactly_what_is_wanted(first: int, offsets: set[int]) -> None:
    """Indices within the span survive the bitmap, over the wire, in ascending order."""
    ref = FileRef("weights", bytes(32), 1, (bytes(16),))
    indices = sorted(first + offset for offset in offsets)
    request = decode(encode(blocks.want(ref, reversed(indices))), Want)
    assert list(blocks.wanted(request)) == indices


def test_bitmap_is_least_significant_bit_first() -> None:
    """Bit 0 of byte 0 is the first block; bit 0 of byte 1 the ninth."""
    assert list(blocks.wanted(Want(bytes(32), 100, b"\x01\x81"))) == [100, 108, 115]
    assert list(blocks.wanted(Want(bytes(32), 100, bytes(64)))) == []


@pytest.mark.parametrize("name", ["a", "cam-01", "0", "x" * 40])
def test_good_ids(name: str) -> None:
    """Short lower-case names with inner dashes may stand in a topic."""
    assert topics.check_id(name) == name
    assert topics.parse_up(topics.want(name)) == (name, "want")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "a+", "#", "x" * 41, "a\n", "ä", "edgefl-server", "..", "a b"])
def test_bad_ids(name: str) -> None:
    """Everything else is an InputError, and no topic with it is taken for a device's."""
    with pytest.raises(InputError):
        topics.check_id(name)
    if name != topics.SERVER:
        with pytest.raises(MessageError):
            topics.parse_up(topics.want(name))


def test_topics_have_at_most_seven_levels_and_are_told_apart() -> None:
    """All topics stay within AWS IoT Core's depth; only a device's own four are parsed as such."""
    up = [topics.state("d"), topics.want("d"), topics.update("d"), topics.report("d")]
    down = [
        topics.receipt("d"),
        topics.assignment("d"),
        topics.metadata("1.root"),
        topics.manifest("m", "p", 3),
        topics.round_order("m", "v"),
        topics.block("ab" * 32),
    ]
    assert all(len(topic.split("/")) <= 7 for topic in up + down)
    assert len(set(up + down)) == 10
    assert [topics.parse_up(topic) for topic in up] == [("d", kind) for kind in ("state", "want", "update", "report")]
    names = [("receipt", ""), ("assignment", ""), ("tuf", "1.root"), ("manifest", "m/p/3"), ("round", "m"), ("block", "ab" * 8)]
    assert [topics.parse_down(topic) for topic in down] == names
    for topic in [*down, "efl/v1/up/d", "efl/v1/up/d/state/x", "efl/v1/up/d/other", "efl/v2/up/d/state", ""]:
        with pytest.raises(MessageError):
            topics.parse_up(topic)
    assert topics.block("0123456789abcdef" * 4) == "efl/v1/all/block/0123456789abcdef"
