from __future__ import annotations

import pytest

from vidcls.data.options import DataOptions
from vidcls.data.urls import is_url, join, redact, refuse_credentials
from vidcls.errors import UserError

SIGNED = (
    "https://bucket.s3.amazonaws.com/a.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAQ%2F20261126%2Fus"
    "&X-Amz-Date=20261126T000000Z&X-Amz-Expires=3600&X-Amz-Security-Token=FwoG&X-Amz-Signature=0badc0de"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@word@host:8080/a@2x.mp4", "https://***@host:8080/a@2x.mp4"),
        ("s3://AKIAQ:se/cr+et@bucket/a.mp4", "s3://***@bucket/a.mp4"),
        ("https://ghp_token@host/a.mp4", "https://***@host/a.mp4"),
        ("HTTPS://me:pw@host", "HTTPS://***@host"),
        ("https://account.blob.core.windows.net/c/a.mp4?sv=2024&se=2027&sig=ab%2Bc", None),
        ("https://storage.googleapis.com/b/a.mp4?GoogleAccessId=me&Expires=17&Signature=abc", None),
        ("https://host/a.mp4?key=AIzaSy_a-b&st=2027-01-01T00%3A00", "https://host/a.mp4?key=***&st=***"),
        ("https://host/a.mp4?id=7&token=abc#access_token=def", "https://host/a.mp4?id=7&token=***#access_token=***"),
        (f"Cannot connect to '{SIGNED}' (3 attempts)", None),
        # nothing secret
        ("s3://bucket/a@2x:b=c.mp4", "s3://bucket/a@2x:b=c.mp4"),
        ("sftp://me@host/a.mp4", "sftp://me@host/a.mp4"),
        ("http://host:8080/a@2x.mp4?id=7&keyboard=3", "http://host:8080/a@2x.mp4?id=7&keyboard=3"),
        ("clips/token=abc.mp4", "clips/token=abc.mp4"),
        ("https://host/get?key=day/a.mp4&st=10&se=20", "https://host/get?key=day/a.mp4&st=10&se=20"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str | None) -> None:
    found = redact(text)
    assert shown is None or found == shown
    for secret in ("pass", "word", "se/cr", "AKIAQ", "ghp_", "ab%2B", "=abc", "=def", "0badc0de", "FwoG", ":pw"):
        assert secret not in found or shown == text


def test_a_url_that_is_signed_again_keeps_its_name() -> None:
    again = SIGNED.replace("0badc0de", "feedbeef").replace("20261126T", "20261127T").replace("3600", "60")
    assert redact(SIGNED) == redact(again) != redact(again.replace("a.mp4", "b.mp4"))


def test_a_configuration_holds_no_credentials() -> None:
    for source in ("https://me:hunter2@host/clips", SIGNED):
        with pytest.raises(UserError) as error:
            DataOptions(source, "cache")
        assert error.value.code == "url-credentials"
        assert "hunter2" not in str(error.value) and "0badc0de" not in str(error.value)
    refuse_credentials("input", "s3://bucket/clips")


def test_names_in_a_list_are_below_its_folder() -> None:
    assert join("/lists", "a.mp4") == "/lists/a.mp4" and join("/lists", "/clips/a.mp4") == "/clips/a.mp4"
    assert join("s3://bucket/lists", "../a.mp4") == "s3://bucket/a.mp4"
    assert join("s3://bucket/lists/", "day 1//a.mp4") == "s3://bucket/lists/day 1//a.mp4"
    assert join("s3://bucket", "file:///clips/a.mp4") == "/clips/a.mp4" and not is_url("C:/clips")
