import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.errors import InputError, ProfileError
from edgefl.names import SERVER, check_id
from edgefl.profile import find_profile, load_profile, read_directory, shipped_directory, shipped_profiles

GOOD = """
title = "Test board"
soc = "One core"
architecture = "aarch64"
cores = 4
ram_mb = 512
storage_kib = 1024
memory_mb = 256
threads = 3
link_kbps = 1000
engine = "portable"
sources = ["a data sheet"]
"""


def written(tmp_path: Path, text: str, name: str = "board.toml") -> Path:
    """A profile file with this text."""
    path = tmp_path / name
    path.write_text(text)
    return path


def test_at_least_eight_boards_are_shipped_and_all_are_valid() -> None:
    """Every shipped file loads, and the classes of boards that the project promises are among them."""
    profiles = shipped_profiles()
    assert len(profiles) >= 8
    assert {"rpi-zero-w", "rpi-zero-2w", "rpi-3b-plus", "rpi-4b-2gb", "rpi-5-8gb", "rpi-cm4", "jetson-orin-nano"} <= set(profiles)
    assert profiles["x86-64-gateway"].engine == "ort-training"


@pytest.mark.parametrize("name", sorted(shipped_profiles()))
def test_shipped_figures_follow_the_rules_of_the_readme(name: str) -> None:
    """Storage is a thirty-second of the training memory, memory at most half of the RAM, and a core stays free."""
    profile = shipped_profiles()[name]
    assert profile.storage_kib * 32 == profile.memory_mb * 1024
    assert profile.memory_mb * 2 <= profile.ram_mb
    assert profile.memory_mb <= 2048
    assert profile.threads < profile.cores or profile.cores == 1
    assert profile.storage_bytes == profile.storage_kib * 1024


def test_a_board_without_a_runtime_says_why() -> None:
    """The original Zero W is listed with the reason why it cannot train."""
    profile = shipped_profiles()["rpi-zero-w"]
    assert (profile.engine, profile.architecture) == ("none", "armv6l")
    assert "32-bit" in profile.reason


def test_the_name_is_the_file_name(tmp_path: Path) -> None:
    """A profile is called what its file is called, and the file may not say otherwise."""
    assert load_profile(written(tmp_path, GOOD)).name == "board"
    with pytest.raises(ProfileError, match="name"):
        load_profile(written(tmp_path, 'name = "other"\n' + GOOD))


@pytest.mark.parametrize(
    ("change", "key", "found"),
    [
        (("cores = 4", 'cores = "four"'), "cores", "four"),
        (("cores = 4", "cores = 0"), "cores", "0"),
        (("cores = 4", "cores = 4\nthread = 2"), "thread", ""),
        (("ram_mb = 512\n", ""), "ram_mb", ""),
        (("threads = 3", "threads = 5"), "threads", "5"),
        (("memory_mb = 256", "memory_mb = 512"), "memory_mb", "512"),
        (('"portable"', '"ort-training"'), "engine", "aarch64"),
        (('"portable"', '"cuda"'), "engine", "cuda"),
        (('"aarch64"', '"armv7l"'), "engine", "portable"),
        (('"portable"', '"none"'), "reason", "''"),
        (("link_kbps", 'reason = "because"\nlink_kbps'), "reason", "because"),
        (('["a data sheet"]', "[]"), "sources", "[]"),
        (("storage_kib = 1024", "storage_kib = 900000"), "storage_kib", "900000"),
        (("link_kbps", "step_ms = 50.0\nlink_kbps"), "step_ms", "none"),
        (("link_kbps", "slowdown = 12.5\nlink_kbps"), "slowdown", "12.5 without one"),
        (("link_kbps", "slowdown = -1.0\nlink_kbps"), "slowdown", ""),
    ],
)
def test_an_error_names_the_file_the_key_and_what_was_found(
    tmp_path: Path, change: tuple[str, str], key: str, found: str
) -> None:
    """Whatever is wrong in a profile, the message leads to the place."""
    assert change[0] in GOOD
    path = written(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert key in str(caught.value)
    assert found in str(caught.value)


def test_a_measured_slowdown_names_its_source(tmp_path: Path) -> None:
    """With a line of sources that says how it was measured, a limit on the time of a step can be judged."""
    text = GOOD.replace('["a data sheet"]', '["a data sheet", "slowdown: doctor 25 ms, push 2 ms"]')
    profile = load_profile(written(tmp_path, "slowdown = 12.5\nstep_ms = 40.0\n" + text))
    assert (profile.slowdown, profile.step_ms) == (12.5, 40.0)


@pytest.mark.parametrize("text", ["cores = ", "\x00", "= 1", "[a]\n[a]", "x" * 70_000])
def test_what_is_no_toml_is_a_profile_error(tmp_path: Path, text: str) -> None:
    """A damaged or endless file gives a message, never a traceback."""
    with pytest.raises(ProfileError, match=re.escape(str(tmp_path))):
        load_profile(written(tmp_path, text))


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Neither escapes as a foreign exception."""
    with pytest.raises(ProfileError, match="does not exist"):
        load_profile(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="no valid TOML"):
        load_profile(tmp_path / "binary.toml")


def test_a_name_that_no_profile_may_have(tmp_path: Path) -> None:
    """A profile's name stands in topics, so its file must be named like an id."""
    with pytest.raises(ProfileError, match="Rename the file"):
        load_profile(written(tmp_path, GOOD, "My Board.toml"))


def test_an_unknown_profile_lists_the_known_ones() -> None:
    """Whoever misspells a name sees what there is."""
    with pytest.raises(ProfileError, match="rpi-zero-2w"):
        find_profile("rpi-zero-2", shipped_profiles())


def test_profiles_are_found_in_a_checkout_and_in_an_empty_directory() -> None:
    """The shipped directory exists; a fleet without own profiles has none."""
    assert (shipped_directory() / "rpi-zero-2w.toml").is_file()
    assert read_directory(Path("/nonexistent/profiles")) == {}


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9-]{1,42}", fullmatch=True))
def test_an_id_is_accepted_only_if_it_is_safe_everywhere(value: str) -> None:
    """Accepted ids hold no character with a meaning in topics, paths, shells or TOML; all others are refused in words."""
    safe = set(value) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and 1 <= len(value) <= 40
    if safe and not value.startswith("-") and not value.endswith("-") and value != SERVER:
        assert check_id(value) == value
    else:
        with pytest.raises(InputError, match="cannot be used"):
            check_id(value)
