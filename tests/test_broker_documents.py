import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgefl.brokers.acl import OBSERVED, may_publish, may_read, mosquitto_acl
from edgefl.names import OBSERVER, RESERVED, SERVER
from edgefl.wire.messages import MAX_PACKET

BROKER = Path(__file__).parent.parent / "broker"


@pytest.mark.skipif(find_spec("yaml") is None, reason="no YAML parser here")
def test_the_compose_file_gives_a_broker_nothing_but_what_it_needs() -> None:
    """It parses; read-only, no capabilities, bounded, and of the fleet only the broker's own files."""
    import yaml

    (service,) = yaml.safe_load((BROKER / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["image"].startswith("eclipse-mosquitto:2")
    assert {"mem_limit", "pids_limit", "healthcheck", "restart", "user"} <= set(service)
    mounts = {volume["source"]: volume.get("read_only", False) for volume in service["volumes"]}
    assert mounts == {
        "${FLEET}/broker": False, "${FLEET}/ca/root.crt": True, "${FLEET}/keys/broker.pem": True
    }  # fmt: skip
    assert all(volume["source"] == volume["target"] for volume in service["volumes"])


def test_the_policy_for_aws_gives_the_rights_of_the_access_rule() -> None:
    """Each statement of the page's policy, with a thing's name put in, is what `may_publish` and `may_read` say."""
    blocks = re.findall(r"```json\n(.*?)```", (BROKER / "aws-iot-core.md").read_text(), re.DOTALL)
    template, policy = map(json.loads, blocks)
    assert template["Resources"]["thing"]["Properties"]["ThingName"] == {"Ref": "AWS::IoT::Certificate::CommonName"}
    found: dict[str, list[str]] = {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        named = [resource.replace("${iot:Connection.Thing.ThingName}", "cam-01") for resource in resources]
        found[statement["Action"]] = [re.sub(r"^arn:aws:iot:REGION:ACCOUNT:\w+/", "", name) for name in named]
    assert found["iot:Connect"] == ["cam-01"]
    assert all(may_publish("cam-01", topic.replace("*", "x")) for topic in found["iot:Publish"] + found["iot:RetainPublish"])
    assert all(may_read("cam-01", topic.replace("*", "x")) for topic in found["iot:Subscribe"] + found["iot:Receive"])
    assert found["iot:Subscribe"] == found["iot:Receive"] == ["efl/v1/down/cam-01/*", "efl/v1/all/*"]
    assert not any(may_publish("cam-01", topic.replace("*", "x")) for topic in found["iot:Receive"])


def test_the_rules_for_emqx_are_the_rules_for_mosquitto() -> None:
    """The page allows to the same users the same filters, and ends with a refusal."""
    (rules,) = re.findall(r"```erlang\n(.*?)```", (BROKER / "emqx.md").read_text(), re.DOTALL)
    assert rules.strip().splitlines()[-1] == "{deny,  all}."
    allowed = {
        (who.strip('{}"').replace('username, "', ""), topic.replace("${username}", "%u"))
        for who, topics in re.findall(r"\{allow, (.*?), (?:all|publish|subscribe),\s+\[(.*?)\]\}\.", rules, re.DOTALL)
        for topic in re.findall(r'"(.*?)"', topics)
    }
    user, expected = "all", set()
    for line in mosquitto_acl().splitlines():
        match line.split():
            case ["user", name]:
                user = name
            case ["topic", _, topic]:
                expected.add((user, topic))
            case ["pattern", _, topic]:
                expected.add(("all", topic))
    assert allowed == expected


def test_the_observer_plays_the_server_for_nobody_real() -> None:
    """It has no right that concerns a device which could exist, and no device can bear a name of the check."""
    assert all(may_publish(OBSERVER, f"{prefix}/x") and may_read(OBSERVER, f"{prefix}/#") for prefix in OBSERVED)
    for topic in ("efl/v1/up/cam-01/state", "efl/v1/down/cam-01/receipt", "efl/v1/all/round/m/v", "$SYS/x", "efl/v1/all/check"):
        assert not may_publish(OBSERVER, topic)
    assert not may_read(OBSERVER, "efl/v1/up/#")
    assert {SERVER, OBSERVER} < RESERVED


def test_the_limit_in_the_template_is_the_protocols() -> None:
    """One number in two places."""
    assert f"message_size_limit {MAX_PACKET}\n" in (BROKER / "mosquitto.conf").read_text()
