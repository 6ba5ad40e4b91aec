"""Buckets on a server of our own that speaks S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import ThreadedMotoServer


class Bucket:
    """A new, empty bucket.

    Attributes:
        uri: its address, with what a client must know of the server.
    """

    def __init__(self, endpoint: str) -> None:
        self._client: Any = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
        self._name = f"bucket-{uuid.uuid4().hex[:12]}"
        self._client.create_bucket(Bucket=self._name)
        self._query = f"?scheme=http&endpoint_override={endpoint}"

    def uri(self, prefix: str) -> str:
        return f"s3://{self._name}/{prefix}{self._query}"

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._name, Key=key)

    def keys(self) -> set[str]:
        """The files; pyarrow leaves empty folders, objects whose name ends in a slash."""
        listed = self._client.list_objects_v2(Bucket=self._name)
        return {found["Key"] for found in listed.get("Contents", ()) if not found["Key"].endswith("/")}


@contextmanager
def serving() -> Iterator[str]:
    """HOST:PORT of a server that ends with the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
    finally:
        server.stop()
