"""The S3 clients of this process."""

from functools import cache

from botocore.loaders import JSONFileLoader
from s3fs import S3FileSystem

from armo_ray.storage.filesystem import shared_filesystem

# every client would parse the megabytes that describe the services of AWS again
JSONFileLoader.load_file = staticmethod(cache(JSONFileLoader().load_file))


def forget_clients() -> None:
    """Make new clients from now on: one keeps the credentials and the endpoint that it began with."""
    shared_filesystem.cache_clear()
    S3FileSystem.clear_instance_cache()
