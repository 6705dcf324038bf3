"""The rules of a rollout and whom it concerns: what is said on the command line and kept in the database."""

import msgspec
import pytest

from edgefl.errors import ConfigError
from edgefl.rollout_rules import Rules, Stage, Target, parse_limit, parse_share, parse_stages


def test_shares_are_rounded_as_people_count() -> None:
    """A share of a number of devices that is whole is not rounded up for the sake of a last bit; any other is."""
    assert [Stage(share=0.07).size(n) for n in (100, 101, 14, 1, 0)] == [7, 8, 1, 1, 0]
    assert Stage(devices=5).size(3) == 3


def test_default_rules_are_those_that_the_documentation_names() -> None:
    """One canary, 5 %, 25 %, all; 90 % must succeed; 10 % of at least 3 stop it."""
    rules = Rules()
    assert ",".join(map(str, rules.stages)) == "1,5%,25%,100%"
    assert (rules.success, rules.abort, rules.minimum, rules.at_limit, rules.approve) == (0.9, 0.1, 3, "pause", False)


def test_rules_are_read_back_as_they_were_written() -> None:
    """Rules and targets survive their encoding."""
    rules, target = Rules(stages=parse_stages("3,12.5%,100%"), approve=True), Target(tags=("lab",), devices=("a", "b"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rules), type=Rules) == rules
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(target), type=Target) == target


@pytest.mark.parametrize(
    "text", ["", "5%", "0,100%", "1,1,100%", "50%,25%,100%", "x", "-1,100%", "101%", "nan%", "1e3", "²,100%", "9" * 30]
)
def test_impossible_stages_are_named(text: str) -> None:
    """Stages that do not rise to 100 % are an error that shows what was found."""
    with pytest.raises(ConfigError):
        Rules(stages=parse_stages(text))


@pytest.mark.parametrize("text", ["", "10", "0%", "%", "inf%", "x%"])
def test_impossible_shares_are_named(text: str) -> None:
    """A share without its sign, of nothing, or of more than all is an error."""
    with pytest.raises(ConfigError):
        parse_share(text)


def test_limit_is_a_share_and_a_number() -> None:
    """`10%/3` and `10%` are limits; `10%/x` is none."""
    assert parse_limit("10%/5") == (0.1, 5)
    assert parse_limit("20%") == (0.2, 3)
    for text in ("10%/x", "10%/0", "10%/", "3"):
        with pytest.raises(ConfigError):
            parse_limit(text)


def test_target_is_all_of_what_it_names() -> None:
    """Of each kind one is enough, and all kinds must hold; nothing named means everybody."""
    target = Target(tags=("lab", "field"), profiles=("big",))
    assert target.includes("a", "big", ["field"])
    assert not target.includes("a", "small", ["field"])
    assert not target.includes("a", "big", [])
    assert Target().includes("a", "big", [])
    assert (str(target), str(Target())) == ("tag lab, field; profile big", "all devices")
