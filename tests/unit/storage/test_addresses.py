"""Which addresses open which storage; nothing is asked of a server here."""

import base64

import pytest

from worker.errors import StorageRefused
from worker.storage import StorageOptions, open_storage

KEY = base64.b64encode(b"k" * 32).decode()


@pytest.mark.parametrize(
    ("url", "options", "shown"),
    [
        ("s3://bucket/some/folder", {}, 'S3Store(bucket="bucket", prefix="some/folder")'),
        ("gs://bucket/folder", {"extra": {"skip_signature": "true"}}, 'GCSStore(bucket="bucket", prefix="folder")'),
        (
            "az://container/folder",
            {"extra": {"account_name": "a", "account_key": KEY}},
            'AzureStore(container_name="container", account_name="a", prefix="folder")',
        ),
    ],
)
def test_every_kind_of_bucket_opens(tmp_path, url, options, shown):
    storage = open_storage(url, StorageOptions(cache=tmp_path, **options))
    assert repr(storage._store) == shown
    assert storage.url == url
    assert storage.local_path("a") is None


@pytest.mark.parametrize(
    ("path_style", "endpoint", "address"),
    [
        (None, "https://s3.example.org", "https://s3.example.org/bucket/k"),
        (False, "https://s3.example.org", "https://bucket.s3.example.org/k"),
        (None, None, "https://bucket.s3.eu-central-1.amazonaws.com/k"),
        (True, None, "https://s3.eu-central-1.amazonaws.com/bucket/k"),
    ],
)
async def test_the_bucket_stands_where_the_server_wants_it(tmp_path, path_style, endpoint, address):
    options = StorageOptions(tmp_path, endpoint, "eu-central-1", "id", "secret", path_style=path_style)
    url = await open_storage("s3://bucket", options).signed_url("k", 60)
    assert url.partition("?")[0] == address


def test_an_option_that_does_not_exist_is_said_so(tmp_path):
    with pytest.raises(StorageRefused, match="nonsense"):
        open_storage("gs://bucket", StorageOptions(cache=tmp_path, extra={"nonsense": "1"}))


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://x", "s3.example.org"])
def test_an_endpoint_without_its_protocol_is_refused(tmp_path, endpoint):
    with pytest.raises(ValueError, match="begins with https"):
        open_storage("s3://bucket", StorageOptions(cache=tmp_path, endpoint=endpoint))


def test_secrets_do_not_show():
    options = StorageOptions(None, None, "r", "id", "hidden-1", "hidden-2", extra={"account_key": "hidden-3"})
    assert "hidden" not in repr(options)
