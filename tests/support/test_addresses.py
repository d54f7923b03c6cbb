from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.support.addresses import parse_address, without_query, without_secrets
from landmarks.support.errors import UsageError

SECRETS = st.text("abcXYZ0189@/:?#%!$&'()*+,;=-._~", min_size=1, max_size=12).map(lambda text: f"s3cr{text}et")


@pytest.mark.parametrize(
    ("address", "user", "password", "bare"),
    [
        ("https://host/a/b", "", "", "https://host/a/b"),
        ("http://me:pw@host:8080/a?x=1", "me", "pw", "http://host:8080/a"),
        ("http://me:p%40w@host/a", "me", "p@w", "http://host/a"),
        ("http://me:p@w@host/a", "me", "p@w", "http://host/a"),
        ("http://me:p/w@host:80/a", "me", "p/w", "http://host:80/a"),
        ("http://me:p?w#x@host/a", "me", "p?w#x", "http://host/a"),
        ("http://token@host", "token", "", "http://host"),
        ("https://host/Category:A@b", "", "", "https://host/Category:A@b"),
        ("s3://bucket/prefix", "", "", "s3://bucket/prefix"),
    ],
)
def test_an_address_is_cut_into_its_parts(address: str, user: str, password: str, bare: str) -> None:
    parts = parse_address(address)
    assert (parts.user, parts.password, parts.bare) == (user, password, bare)


@pytest.mark.parametrize("address", ["http://me:p@w/d@host/a", "http://me:1/2@host/", "http://me:a/b@c@host/x"])
def test_an_address_that_may_mean_two_things_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(UsageError, match="cannot be understood") as refused:
        parse_address(address)
    assert "host" not in str(refused.value)


@given(SECRETS, st.sampled_from(["{}", "cannot read {} (refused)", "a: {}: b"]))
def test_no_text_shows_a_password_of_an_address_in_it(secret: str, around: str) -> None:
    text = without_secrets(around.format(f"http://me:{secret}@host.example/file.tar"))
    assert secret not in text
    assert "me:" not in text
    assert "host.example/file.tar" in text


def test_signatures_are_taken_out_and_other_queries_stay() -> None:
    signed = "http://h/x?X-Amz-Signature=abc123&X-Amz-Credential=me&part=7&sig=q"
    assert without_secrets(signed) == "http://h/x?X-Amz-Signature=…&X-Amz-Credential=…&part=7&sig=…"
    assert without_query(f"see {signed} there") == "see http://h/x there"
    assert without_secrets("https://commons.wikimedia.org/w/index.php?title=A@b") == (
        "https://commons.wikimedia.org/w/index.php?title=A@b"
    )
