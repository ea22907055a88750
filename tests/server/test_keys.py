"""Keys: where they are read from, how they are held, and what follows from the one given."""

from __future__ import annotations

import gc
import hmac
import logging
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from server.config import ServerConfig
from server.keys import KeyRing, read_keys

ALICE, BOB, ADMIN = "sk-alice-0123456789", "sk-bob-0123456789", "sk-admin-0123456789"


def test_each_key_is_a_caller_of_its_own() -> None:
    ring = KeyRing([ALICE, BOB], [ADMIN])
    callers = [ring.find([key]) for key in (ALICE, BOB, ADMIN)]
    tenants = [caller.tenant for caller in callers if caller is not None]
    assert len(set(tenants)) == 3
    assert [caller.is_admin for caller in callers if caller is not None] == [False, False, True]


@pytest.mark.parametrize("wrong", ["", "sk", ALICE[:-1], ALICE + "x", ALICE.upper(), "\udce9"])
def test_a_key_that_is_nearly_right_is_wrong(wrong: str) -> None:
    assert KeyRing([ALICE]).find([wrong]) is None


def test_any_of_several_keys_that_are_given_may_be_right() -> None:
    ring = KeyRing([ALICE])
    assert ring.find([BOB, ALICE]) == ring.find([ALICE]) != ring.find([BOB])


def test_every_digest_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"sk-{index:020}" for index in range(5)]
    ring = KeyRing(keys)
    num_compared = 0
    compare = hmac.compare_digest

    def counting(a: Any, b: Any) -> bool:
        nonlocal num_compared
        num_compared += 1
        return compare(a, b)

    monkeypatch.setattr("server.keys.hmac.compare_digest", counting)
    for key in [*keys, "wrong"]:
        num_compared = 0
        ring.find([key])
        assert num_compared == 5


def test_a_ring_holds_no_key_and_no_digest_that_could_be_looked_up() -> None:
    first, second = KeyRing([ALICE]), KeyRing([ALICE])
    held = repr([vars(first), *gc.get_referents(first)])
    assert ALICE not in held
    assert first.find([ALICE]) != second.find([ALICE])


def test_keys_come_from_flags_file_and_environment_which_then_lacks_them(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# callers\n{BOB}  # Bob's\n\n")
    file.chmod(0o600)
    environment = {"OUTDRAFT_API_KEYS": "sk-c-0123456789abc, sk-d-0123456789abc", "OTHER": "x"}
    environment["OUTDRAFT_ADMIN_KEYS"] = ADMIN
    ring = read_keys(ServerConfig(api_key=(ALICE,), api_key_file=str(file)), environment)
    assert environment == {"OTHER": "x"}
    given = [ALICE, BOB, "sk-c-0123456789abc", "sk-d-0123456789abc", ADMIN]
    assert all(ring.find([key]) is not None for key in given)
    assert ring.num_tenants == 5
    assert ring.find(["# callers"]) is None


def test_a_file_without_keys_does_not_open_the_server(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="has no keys"):
        read_keys(ServerConfig(api_key_file=str(file)))


@pytest.mark.parametrize("bad", ["", "two words", "caf\u00e9", "line\nbreak"])
def test_keys_that_no_header_carries_are_refused_without_repeating_them(bad: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        read_keys(ServerConfig(api_key=(bad,)))
    assert not bad or bad not in str(caught.value)


def test_short_keys_and_open_files_are_warned_of_without_their_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text("tiny\n")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING, logger="server.keys"):
        read_keys(ServerConfig(api_key_file=str(file)))
    assert "short_key" in caplog.text
    assert "key_file_readable_by_others" in caplog.text
    assert "tiny" not in caplog.text


def test_a_configuration_shows_its_secrets_nowhere() -> None:
    config = ServerConfig(api_key=(ALICE,), admin_key=(ADMIN,))
    assert ALICE not in repr(config)
    assert ADMIN not in repr(config)
    assert ALICE not in repr(config.shown())
    assert config.without_secrets() == ServerConfig()
    # The fingerprint is made from these, and is told to callers.
    assert "key" not in repr(EngineConfig())


def test_prefixes_are_isolated_as_soon_as_there_are_two_callers() -> None:
    alone = KeyRing([ALICE]).find([ALICE])
    assert alone is not None
    assert (alone.cache_salt(""), alone.cache_salt("x")) == ("", "x")
    ring = KeyRing([ALICE, BOB])
    alice, bob = ring.find([ALICE]), ring.find([BOB])
    assert alice is not None
    assert bob is not None
    salts = {caller.cache_salt(given) for caller in (alice, bob) for given in ("", "x", "y")}
    assert len(salts) == 6
    assert alice.cache_salt("x") == alice.cache_salt("x")


def test_who_has_no_key_is_a_caller_too_where_only_admins_have_keys() -> None:
    assert KeyRing([], [ADMIN]).num_tenants == 2
    assert KeyRing().num_tenants == 1
