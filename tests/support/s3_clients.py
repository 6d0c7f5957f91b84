"""The S3 clients of this process."""

from functools import cache

from botocore.loaders import JSONFileLoader
from s3fs import S3FileSystem

# every client would parse the megabytes that describe the services of AWS again
JSONFileLoader.load_file = staticmethod(cache(JSONFileLoader().load_file))


def forget_clients() -> None:
    """Make new clients from now on: one keeps the credentials and the endpoint that it began with."""
    S3FileSystem.clear_instance_cache()
