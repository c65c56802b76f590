"""Log lines: no secret in them, in whatever corner of a line it stands, and no text that takes long to look through."""

import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.log import HIDDEN, Redaction, secrets_of
from worker.settings import Settings

# What a password may hold where somebody wrote it into an address without encoding it: anything but white space.
PASSWORDS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126) | st.sampled_from("@/:?#%&=\"'\\…äß"), min_size=6, max_size=40
)


def line(**event):
    return json.dumps(Redaction()(None, "info", event), ensure_ascii=False)


@given(PASSWORDS, st.sampled_from(["postgresql", "amqps", "https", "s3"]))
def test_no_password_of_an_address_is_left_anywhere_in_a_line(password, scheme):
    password = f"{password}kept"  # long enough to stand nowhere else
    url = f"{scheme}://user:{password}@host.example:5432/database"
    held = OSError(f"cannot reach {url}: refused")
    redaction = Redaction()
    for event in (
        {"event": url},
        {"event": f"cannot reach {url}, really"},
        {"event": "x", "nested": {"deep": [{"url": url}], "tuple": ("a", url)}},
        {"event": "x", url: 1},
        {"event": "x", "error": held},
        {"event": "x", "names": {url}},
    ):
        found = str(redaction(None, "info", event))
        assert password not in found
        assert repr(password)[1:-1] not in found
        assert "kept" not in found


@given(PASSWORDS)
def test_what_the_settings_hold_is_hidden_wherever_it_stands(password):
    settings = Settings(
        database_url=SecretStr(f"postgresql://worker:{password}longer@db/training"),
        s3_secret_key=SecretStr(f"{password}s3-key"),
    )
    redaction = Redaction(secrets_of(settings))
    for secret in (f"{password}longer", f"{password}s3-key"):
        assert secret not in redaction.text(f"somebody wrote {secret} here")


def test_a_password_with_spaces_is_hidden_too():
    settings = Settings(database_url=SecretStr("postgresql://worker:correct horse battery@db/training"))
    assert "horse" not in Redaction(secrets_of(settings)).text("no user 'correct horse battery' there")


def test_secrets_inside_of_settings_are_hidden_each():
    settings = Settings(
        ray_headers=SecretStr('{"Authorization": "Bearer tokentoken", "X-Team": "teamteam"}'),
        storage_options={"azure_storage_account_key": "accountkey", "azure_container_name": "recordings"},
    )
    redaction = Redaction(secrets_of(settings))
    found = redaction.text('it said tokentoken, teamteam and accountkey of recordings, {"Authorization":')
    assert found == f'it said {HIDDEN}, {HIDDEN} and {HIDDEN} of recordings, {{"Authorization":'


@pytest.mark.parametrize(
    "text",
    [
        "https://bucket.s3.example/key?X-Amz-Credential=HUNTER2HUNTER2&X-Amz-Signature=HUNTER2HUNTER2&X-Amz-Expires=900",
        "https://bucket.s3.example/key?X-Amz-Expires=900&x-amz-security-token=HUNTER2HUNTER2",
        "https://account.blob.example/c/b?sv=2024-01-01&se=2026-11-28&sig=HUNTER2HUNTER2%3D",
        "https://storage.example/b/o?X-Goog-Signature=HUNTER2HUNTER2&X-Goog-Date=1",
        "https://storage.example/b/o?Expires=1&Signature=HUNTER2HUNTER2&KeyName=k",
        "host=db password=HUNTER2HUNTER2 dbname=x",
        "host=db password='HUNTER2 HUNTER2' dbname=x",
        '{"password": "HUNTER2HUNTER2", "user": "u"}',
        "{'secret_access_key': 'HUNTER2HUNTER2'}",
        "aws_secret_access_key=HUNTER2HUNTER2",
        "Authorization: Bearer HUNTER2HUNTER2",
        "authorization: Basic HUNTER2HUNTER2",
        "'Proxy-Authorization': 'Basic HUNTER2HUNTER2'",
        "sent with Bearer HUNTER2HUNTER2",
        "the key stk_HUNTER2HUNTER2-HUNTER2_HUNTER2 is revoked",
        "whsec_HUNTER2HUNTER2HUNTER2==",
        "api_key=HUNTER2HUNTER2",
        "token: HUNTER2HUNTER2",
    ],
)
def test_signatures_keys_and_tokens_are_hidden(text):
    assert "HUNTER2" not in line(event=text)
    assert "HUNTER2" not in line(event="x", detail=[text])


def test_a_value_under_a_secrets_name_is_hidden_whatever_it_looks_like():
    found = line(
        event="x", password="a", s3_secret_key="b1b2", headers={"Authorization": "c1c2"}, key=SecretStr("d1d2")
    )
    assert all(word not in found for word in ('"a"', "b1b2", "c1c2", "d1d2"))


def test_what_is_no_secret_stays():
    event = {
        "event": "https://host.example:8080/path?x=1 from 10.0.0.1",
        "tokens": 448,
        "nested": {"key_id": 7, "at": 1.5, "ok": True, "none": None},
        "mail": "someone@example.org",
        "run": "0f0e",
    }
    assert Redaction()(None, "info", dict(event)) == event


@pytest.mark.parametrize(
    "piece", ["://", "@://", "password=", 'password="', "password:   ", "bearer ", "stk_", "a_secret", "x-amz-"]
)
def test_no_text_takes_longer_than_its_length(piece):
    """Processor time of eight times the text is about eight times as long, and far from sixty-four times."""

    def taken(times):
        text = piece * times
        begin = time.process_time()
        Redaction().text(text)
        return time.process_time() - begin

    short = min(taken(8_000) for _ in range(3))
    assert min(taken(64_000) for _ in range(3)) < 30 * max(short, 0.001)


def test_exceptions_of_ours_and_lines_of_libraries_are_looked_through_as_well():
    program = """
import logging, structlog
from worker.log import configure_log
configure_log(secrets=["in-the-settings"])
url = "amqp://user:p@ss/w0rd@broker/"
try:
    raise ValueError(f"bad {url} and in-the-settings")
except ValueError as error:
    structlog.get_logger().exception("own", url=url)
    logging.getLogger("library").exception("foreign %s", url)
    structlog.get_logger().info("stack", stack_info=True, error=error, many={"a": [url]})
logging.getLogger("library").error("plain %s", {"url": url})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [json.loads(one) for one in done.stderr.splitlines()]
    assert [one["event"].split(" ")[0] for one in lines] == ["own", "foreign", "stack", "plain"]
    assert "ValueError: bad amqp://" + HIDDEN in lines[0]["exception"]
    assert "ValueError" in lines[1]["exception"]
    for word in ("w0rd", "p@ss", "in-the-settings"):
        assert word not in "\n".join(line for line in done.stderr.splitlines() if "url = " not in line)
