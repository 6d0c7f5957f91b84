"""Credentials come from the environment and profiles, and are found nowhere else."""

import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.score.config import ScoreConfig, load_config
from armo_ray.score.job import prepare
from armo_ray.storage import retries
from armo_ray.storage.filesystem import open_filesystem
from armo_ray.storage.retries import describe_error
from armo_ray.storage.store import Store
from tests.support.fault_proxy import EVERY, FaultProxy
from tests.support.local import PAIR, config_for, score_locally
from tests.support.s3_clients import forget_clients

pytest_plugins = ("tests.support.s3_server",)

SECRET = "hunter2-recognisable"
WITH_CREDENTIALS = [
    f"s3://AKIAKEY:{SECRET}@bucket/x.jsonl",
    f"s3://AKIAKEY:{SECRET[:7]}/{SECRET}@bucket/x.jsonl",
    f"https://user:{SECRET}@host/x.jsonl",
    f"https://{SECRET}@host/x.jsonl",
    f"https://bucket.s3.amazonaws.com/x.jsonl?X-Amz-Credential=a&X-Amz-Signature={SECRET}",
    f"az://container/x.jsonl?sv=2026&sig={SECRET}",
]


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
@pytest.mark.parametrize("place", ["input", "output", "model", "config", "verify"])
def test_a_uri_with_credentials_is_refused_without_repeating_them(
    uri: str, place: str, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"input": "in.jsonl", "output": "out", "model": "m"} | {place: uri}
    flags = [word for name in ("input", "output", "model") for word in (f"--{name}", given[name])]
    commands = {"config": ["score", uri, *flags], "verify": ["verify", uri]}
    assert main(commands.get(place, ["score", *flags])) == 2
    told = capsys.readouterr()
    assert "must not hold credentials" in told.err
    assert SECRET not in told.err + told.out + caplog.text


def test_a_configuration_does_not_repeat_them_either(tmp_path: Path) -> None:
    options = {"input": [WITH_CREDENTIALS[0]], "output": "o", "model": "m"}
    with pytest.raises(ValueError, match="credentials") as caught:
        ScoreConfig.model_validate(options)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="input: s3://") as told:
        load_config(None, options)
    assert SECRET not in str(told.value)


def test_uris_without_credentials_are_taken(tmp_path: Path) -> None:
    for uri in (
        *(
            "s3://bucket/a:b@c/x.jsonl",
            "s3://arn:aws:s3:eu-west-1:1:accesspoint/a/x",
            "hf://datasets/a/b@main/x",
        ),
        *(
            "abfs://container@account.dfs.core.windows.net/x",
            "https://host:8080/x.jsonl?version=2",
            "/a:b@c/x",
        ),
    ):
        assert load_config(None, {"input": [uri], "output": "o", "model": "m"}).input == (uri,)


def test_no_credential_is_written_or_logged_by_a_run(
    s3: str, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Store(s3).write("in.jsonl", PAIR)
    score_locally(tiny_model, f"{s3}/in.jsonl", f"{s3}/out")
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    secrets = [secret.encode() for secret in map(os.environ.get, names) if secret]
    assert secrets
    store = Store(f"{s3}/out")
    texts = [caplog.text.encode(), *(store.fs.cat_file(path) for path in store.find(""))]
    assert len(texts) == 1 + 5  # a part, its commit, the table of commits, the run and the manifest
    assert not [text for text in texts for secret in secrets if secret in text]


@pytest.mark.parametrize("profile", [False, True])
def test_no_error_repeats_a_credential(
    s3: str,
    faulty: FaultProxy,
    profile: bool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = faulty.endpoint.replace("://", f"://user:{SECRET}@")
    if profile:
        (tmp_path / "config").write_text(f"[profile night]\nendpoint_url = {endpoint}\n")
        (tmp_path / "keys").write_text(f"[night]\naws_access_key_id = a\naws_secret_access_key = {SECRET}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
        monkeypatch.setenv("AWS_PROFILE", "night")
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.2)
    forget_clients()
    for chances in ({}, {(EVERY, "reset"): 1.0}):
        faulty.chances = chances
        with pytest.raises((ConfigError, RuntimeError), match=f"{s3}/in") as caught:
            prepare(config_for(tiny_model, f"{s3}/in", f"{s3}/out"))
        assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"no route to http://user:{SECRET}@host:1/a", "http://***@host:1/a"),
        (f"GET https://host/x?sig={SECRET}&a=1", "sig=***&a=1"),
        (f"GET https://host/x?X-Amz-Signature={SECRET}", "X-Amz-Signature=***"),
        (f"AccountName=a;AccountKey={SECRET};EndpointSuffix=b", "AccountKey=***;EndpointSuffix=b"),
    ],
)
def test_errors_are_told_without_what_a_url_may_hold(text: str, kept: str) -> None:
    assert kept in describe_error(OSError(text))
    assert SECRET not in describe_error(OSError(text))


@pytest.mark.parametrize("name", ["AZURE_CLIENT_SECRET", "AZURE_STORAGE_CONNECTION_STRING", "HF_TOKEN"])
def test_what_the_environment_keeps_secret_is_in_no_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert describe_error(ValueError(f"refused: {SECRET}, sorry")) == "ValueError: refused: ***, sorry"


@pytest.mark.parametrize(("uri", "extra"), [("gs://b/x", "gs"), ("az://c/x", "az"), ("abfs://c@a/x", "az")])
def test_a_storage_whose_package_is_missing_names_the_extra(
    uri: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=re.escape(f"pip install 'armo-ray[{extra}]'")):
        open_filesystem(uri)


def test_the_hub_is_read_and_never_written() -> None:
    with pytest.raises(ConfigError, match="outputs go to a local path, s3://, gs:// or az://"):
        Store("hf://datasets/a/b")
