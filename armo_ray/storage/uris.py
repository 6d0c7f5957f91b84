"""Checking that a URI can be stored and logged."""

import re

from armo_ray.errors import ConfigError

# query parameters that sign a request on S3, Google Cloud Storage and Azure
_SIGNED = re.compile(r"(?i)[?&](sig|signature|x-amz-\w+|x-goog-\w+|awsaccesskeyid|token|key|secret)=")


def check_uri(uri: str) -> None:
    """Raises ConfigError if a URI holds credentials: they would be stored in the output and logged.

    The message does not repeat them.
    """
    protocol, separator, rest = uri.partition("://")
    if not separator or protocol == "file":
        return
    authority = rest.split("/", 1)[0]
    # a secret may contain slashes; a bucket name contains no colon, unless it is an ARN
    in_bucket = ":" in authority and not authority.startswith("arn:")
    if ("@" in authority if protocol in ("http", "https") else in_bucket) or _SIGNED.search(uri):
        raise ConfigError(
            f"{protocol}://***: a URI must not hold credentials: put them into the environment or a profile "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )
