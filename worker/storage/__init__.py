"""Object storage behind one small interface: files, S3, Google Cloud Storage, Azure."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.storage.files import PRIVATE, FileStorage
from worker.storage.interface import Storage, StorageOptions, Stored, StoredFile
from worker.storage.keys import check_key

__all__ = ["FileStorage", "Storage", "StorageOptions", "Stored", "StoredFile", "check_key", "open_storage"]


def open_storage(url: str, options: StorageOptions | None = None) -> Storage:
    """The storage at an address: ``file:///folder``, ``s3://bucket/prefix``, ``gs://…`` or ``az://…``.

    Nothing is asked of a remote storage here; ``size`` of any key tells whether it answers.

    Raises:
        ValueError: not an address of a storage, or of an endpoint.
        StorageAway: the folder cannot be made or used.
        StorageRefused: an option that this kind of storage does not have.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        if parts.netloc or not folder.is_absolute():
            raise ValueError(f"a file storage is file:///and/an/absolute/folder, not {url!r}")
        return FileStorage(folder, mask=options.mask if options else PRIVATE)
    if parts.scheme not in {"s3", "s3a", "gs", "az"} or not parts.netloc or parts.query:
        raise ValueError(f"not the address of a storage (file:///…, s3://…, gs://…, az://…): {url!r}")
    endpoint = options.endpoint if options else None
    if endpoint and not endpoint.startswith(("https://", "http://")):
        raise ValueError(f"an S3 endpoint begins with https:// (or http://, unprotected), not {endpoint!r}")
    from worker.storage.remote import RemoteStorage  # noqa: PLC0415 - obstore only where it is used

    return RemoteStorage(url, options or StorageOptions())
