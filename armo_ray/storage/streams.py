"""The bytes of JSONL shards, decompressed."""

import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from armo_ray.storage.filesystem import Source
from armo_ray.storage.formats import CODECS
from armo_ray.storage.shards import Shard, open_shard

TORN = (OSError, EOFError, pa.ArrowException)  # what reading a stream that breaks off raises
CHUNK = 1 << 20


def contents(shard: Shard, source: Source) -> Iterator[bytes]:
    """The content of an open shard in pieces, as far as it can be read; then raises one of `TORN`.

    Zeros after the end of a gzip file are no damage.
    """
    codec = CODECS.get(shard.kind)
    stream = pa.PythonFile(source)
    if codec and shard.size:
        stream = pa.CompressedInputStream(stream, codec)
    try:
        yield from chunks(stream)
    except TORN:
        source.raise_failure()
        if codec != "gzip" or not _is_padded(shard):
            raise


def chunks(stream: Any) -> Iterator[bytes]:
    """The content in pieces. For a truncated compressed file, all that can be decoded, then the error.

    Arrow raises in the middle of a read, after it has written the decoded bytes into the buffer.
    """
    while True:
        buffer = bytearray(CHUNK)
        try:
            size = stream.readinto(buffer)
        except TORN:
            if rest := bytes(buffer.rstrip(b"\0")):
                yield rest
            raise
        if not size:
            return
        yield bytes(memoryview(buffer)[:size])


def _is_padded(shard: Shard) -> bool:
    """Whether a gzip file that Arrow reports as damaged is complete, and only padded with zeros as tar does."""
    with open_shard(shard) as source:
        try:
            with gzip.GzipFile(fileobj=source) as stream:
                while stream.read(CHUNK):
                    pass
            return True
        except (OSError, EOFError, zlib.error):
            source.raise_failure()
            return False
