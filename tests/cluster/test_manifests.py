"""The files of cluster/ are valid where that can be told without a cluster, and agree with the code and each other."""

import copy
import functools
import gzip
import importlib.metadata
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

import armo_ray
from armo_ray.cli.parser import build_parser
from armo_ray.exit_status import MISUSED
from armo_ray.fit.options import FitOptions
from armo_ray.judge.options import JudgeOptions
from armo_ray.judging.judge import load_judge
from armo_ray.nightly.night import load_night
from armo_ray.nightly.options import NightlyOptions
from armo_ray.options import load_options
from armo_ray.score.config import ScoreConfig, load_config
from armo_ray.score.progress.metrics import SERIES, TAGS
from tests.support import kuberay
from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
FILES = ["Dockerfile", "constraints.txt", "nightly.yaml", "ray-up.yaml", "rayjob.yaml", "slurm.sh"]
MONITORING = ["grafana.json", "podmonitor.yaml"]
TEXTS = {name: (CLUSTER / name).read_text("utf-8") for name in FILES + MONITORING}
RUNS = ["nightly.yaml", "ray-up.yaml", "rayjob.yaml", "slurm.sh"]  # those that start the job
KUBERNETES = ["nightly.yaml", "rayjob.yaml"]
LINES = [line for line in TEXTS["constraints.txt"].splitlines() if not line.startswith("#")]
PINS = dict(line.split("==") for line in LINES)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CRDS = next((p / "shared/kuberay" for p in ROOT.parents if (p / "shared/kuberay").is_dir()), None)
LAUNCHER = prepare_config(yaml.safe_load(TEXTS["ray-up.yaml"]))
DAY = 24 * 60 * 60


@functools.cache
def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TEXTS[name])
    return found


def job(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifest(name)["spec"]
    return dict(spec.get("jobTemplate", spec))


def node_types(name: str) -> dict[str, Any]:
    """What Ray's autoscaler makes of a file: resources and bounds of every kind of node."""
    if name == "ray-up.yaml":
        return dict(LAUNCHER["available_node_types"])
    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": job(name)["rayClusterSpec"]}
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(derived)
    return dict(derived["available_node_types"])


def lines(name: str) -> list[str]:
    """Those of a file, comments too, each with what it is continued by."""
    text = re.sub(r"\\\n[ #]*", "", TEXTS[name])
    return [line.strip(" #") for line in text.splitlines()]


def entrypoints(name: str) -> list[list[str]]:
    """The words of the commands in a file that start a job, from the module on."""
    found = [re.search(r"(?:python -m|set --) (jobs\..*)", line) for line in lines(name)]
    words = [shlex.split(match[1]) for match in found if match]
    return [["2026-11-20" if word.startswith("$(") else word for word in those] for those in words]


def arguments(module: str, *words: str) -> ScoreConfig:
    """The options of scoring that a command gives."""
    command = module.removeprefix("jobs.")
    args = vars(build_parser().parse_args([command, *words]))
    if command == "nightly":
        given = {k: v for k, v in args.items() if k in NightlyOptions.model_fields}
        (config,) = load_night(NightlyOptions(**given)).steps[0].options
        assert isinstance(config, ScoreConfig)
        return config
    return load_config(args["config"], {k: v for k, v in args.items() if k in ScoreConfig.model_fields})


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, str(key)))
    else:
        yield path, value


def containers(name: str) -> Iterator[dict[str, Any]]:
    spec = job(name)["rayClusterSpec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        yield from group["template"]["spec"]["containers"]


def test_every_file_is_known_here() -> None:
    assert sorted(path.name for path in CLUSTER.iterdir()) == sorted([*FILES, *MONITORING, "README.md"])


# Kubernetes


@pytest.mark.parametrize("name", KUBERNETES)
def test_manifests_follow_the_schema(name: str) -> None:
    assert kuberay.faults(manifest(name)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1"),
        ("kind: RayJob", "kind: RayJobs"),
        ("backoffLimit: 0", 'backoffLimit: "0"'),
        ("maxReplicas: 7", "maxReplica: 7"),
        ("groupName: gpu-spot", "name: gpu-spot"),
        ("mode: token", "mode: tokens"),
        ("memory: 16Gi", "memory: 16GiB"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ("headGroupSpec:", "headGroup:"),
    ],
)
def test_the_schema_refuses(old: str, new: str) -> None:
    assert old in TEXTS["rayjob.yaml"]
    broken = yaml.safe_load(TEXTS["rayjob.yaml"].replace(old, new))
    assert kuberay.faults(broken) != []


@pytest.mark.skipif(CRDS is None, reason="needs the schemas of KubeRay's CRDs")
@pytest.mark.parametrize("kind", sorted(kuberay.SPECS))
def test_the_schema_is_that_of_kuberay(kind: str) -> None:
    assert CRDS is not None
    crd = json.loads(gzip.decompress((CRDS / f"{kind}.v1.schema.json.gz").read_bytes()))
    assert kuberay.unfaithful(kuberay.SPECS[kind], crd["properties"]["spec"]) == []


def test_the_night_has_the_cluster_of_the_job_and_a_schedule() -> None:
    night, once = job("nightly.yaml"), job("rayjob.yaml")
    assert night.pop("entrypoint") != once.pop("entrypoint")
    assert night == once
    minute, hour, *every = manifest("nightly.yaml")["spec"]["schedule"].split()
    assert every == ["*", "*", "*"]
    assert 0 <= int(minute) < 60
    assert 0 <= int(hour) < 24


def test_a_night_is_over_before_the_next() -> None:
    spec = job("nightly.yaml")
    assert (spec["backoffLimit"] + 1) * spec["activeDeadlineSeconds"] < DAY
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"]


def test_the_fault_tolerance_that_is_only_told_of_is_valid_too() -> None:
    told = re.sub(r"^( +)# (gcsFaultToleranceOptions:| )", r"\1\2", TEXTS["rayjob.yaml"], flags=re.MULTILINE)
    changed = yaml.safe_load(told)
    assert changed["spec"]["rayClusterSpec"].pop("gcsFaultToleranceOptions")["redisPassword"]
    assert changed == manifest("rayjob.yaml")
    assert kuberay.faults(yaml.safe_load(told)) == []


@pytest.mark.parametrize("name", KUBERNETES)
def test_pods_are_not_root_and_mount_what_they_name(name: str) -> None:
    spec = job(name)["rayClusterSpec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        uid = re.search(r"^USER (\d+)$", TEXTS["Dockerfile"], re.MULTILINE)
        assert uid
        assert pod["securityContext"]["runAsUser"] == int(uid[1])
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
            assert {"name": "HF_HOME", "value": mounts["models"]} in container["env"]
            assert container["resources"]["requests"] == container["resources"]["limits"]


# The nodes are those that the job asks for


@pytest.mark.parametrize("name", [*KUBERNETES, "ray-up.yaml"])
def test_every_replica_has_a_gpu_and_the_least_of_them_is_never_taken(name: str) -> None:
    types = node_types(name)
    (words,) = entrypoints(name)
    config = arguments(*words)
    assert config.replicas is not None
    assert config.gpus_per_replica is not None
    gpus = {kind: node["resources"].get("GPU", 0) for kind, node in types.items()}
    kept = sum(gpus[kind] * node["min_workers"] for kind, node in types.items() if "spot" not in kind)
    most = sum(gpus[kind] * node["max_workers"] for kind, node in types.items())
    assert config.replicas == (kept / config.gpus_per_replica, most / config.gpus_per_replica)
    assert min(filter(None, gpus.values())) >= config.gpus_per_replica


@pytest.mark.parametrize("name", [*KUBERNETES, "ray-up.yaml"])
def test_the_head_runs_no_tasks_and_spot_nodes_come_and_go(name: str) -> None:
    types = node_types(name)
    (head,) = (kind for kind in types if kind.startswith("head"))
    assert types[head]["resources"].get("CPU") == 0
    assert "GPU" not in types[head]["resources"]
    spot = [node for kind, node in types.items() if "spot" in kind]
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in spot)
    assert all(node["min_workers"] > 0 for kind, node in types.items() if "demand" in kind)


def test_groups_lie_on_the_nodes_that_they_are_named_after() -> None:
    cluster = job("rayjob.yaml")["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert group["groupName"].endswith(pod["nodeSelector"]["karpenter.sh/capacity-type"])
        asks = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert asks == group["groupName"].startswith("gpu") == bool(pod.get("tolerations"))
    for kind, node in LAUNCHER["available_node_types"].items():
        assert ("InstanceMarketOptions" in node["node_config"]) == ("spot" in kind)


def test_the_launcher_takes_its_file() -> None:
    validate_config(copy.deepcopy(LAUNCHER))
    workers = [node for kind, node in node_types("ray-up.yaml").items() if kind != "head"]
    assert sum(node["max_workers"] for node in workers) == LAUNCHER["max_workers"]
    assert LAUNCHER["setup_commands"] == LAUNCHER["head_setup_commands"] == []


# Images and versions


def test_all_name_one_image_of_these_versions() -> None:
    images = {word for text in TEXTS.values() for word in re.findall(r"\S*/armo-ray:\S+", text)}
    assert images == {f"registry.example.com/armo-ray:{armo_ray.__version__}-ray{PINS['ray']}"}
    assert {c["image"] for name in KUBERNETES for c in containers(name)} == images
    assert {LAUNCHER["docker"]["image"]} == images
    assert {job(name)["rayClusterSpec"]["rayVersion"] for name in KUBERNETES} == {PINS["ray"]}


def test_ray_here_is_the_ray_of_the_constraints() -> None:
    assert importlib.metadata.version("ray") == PINS["ray"]


def test_the_constraints_pin_what_the_project_needs() -> None:
    project = PYPROJECT["project"]
    assert len(PINS) == len(LINES)
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        need = Requirement(line)
        assert pins[need.name.lower().replace("_", "-")] in need.specifier, line
    assert pins["boto3"].rsplit(".", 1)[0] == pins["botocore"].rsplit(".", 1)[0]  # of one release


def test_the_image_is_of_the_oldest_python_that_the_project_takes() -> None:
    (version,) = re.findall(r"^FROM python:(\d+\.\d+)-slim-bookworm$", TEXTS["Dockerfile"], re.MULTILINE)
    assert PYPROJECT["project"]["requires-python"] == f">={version}"


def test_the_container_file_copies_what_exists_and_installs_by_the_constraints() -> None:
    docker = "\n".join(lines("Dockerfile"))
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.*)$", docker, re.MULTILINE)]
    paths = [path for words in copied for path in words]
    assert all((ROOT / path).exists() for path in paths)
    assert {"armo_ray", "jobs", "pyproject.toml", PYPROJECT["project"]["readme"]} <= set(paths)
    assert docker.index("COPY cluster/constraints.txt cluster/") < docker.index("RUN pip")
    installs = re.findall(r"pip install (.*?)(?: &&|$)", docker, re.MULTILINE)
    assert len(installs) == 2
    for words in (install.split() for install in installs):
        assert words[:2] == ["-c", "cluster/constraints.txt"]
        assert all(name == "." or name in PINS for name in words[2:])


@pytest.mark.parametrize("name", [name for name in FILES if name != "constraints.txt"])
def test_every_install_is_by_the_constraints(name: str) -> None:
    installs = [line for line in lines(name) if "pip install" in line]
    assert all("-c cluster/constraints.txt" in line for line in installs)
    assert installs or name in KUBERNETES


# Commands


@pytest.mark.parametrize("name", RUNS)
def test_what_is_started_exists_and_its_configuration_loads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    ((module, *words),) = entrypoints(name)
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    assert arguments(module, *words).output


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_loads(path: Path) -> None:
    given = {name.replace("-", "_") for name in tomllib.loads(path.read_text("utf-8"))}
    if "score" in given:  # a section: the file of a whole night
        load_night(NightlyOptions(file=str(path)))
        return
    if isinstance(judge := tomllib.loads(path.read_text("utf-8")).get("judge"), dict):
        assert load_judge(str(path)).reward_names
        return
    if "objective" in given:
        assert load_options(FitOptions, str(path), {"scores": ["x"], "output": "y"}).objective
        return
    if judge is not None:  # the options of a run
        assert load_judge(load_options(JudgeOptions, str(path), {}).judge).columns == ()
        return
    required = [name for name, field in ScoreConfig.model_fields.items() if field.is_required()]
    load_config(str(path), {name: "x" for name in required if name not in given})


def parse_ray(words: list[str]) -> None:
    """Have Ray's own command line parse a command; nothing runs."""
    command: click.Command = ray_cli
    context: click.Context | None = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        _, found, words = command.resolve_command(context, words)
        assert found
        command = found
    command.make_context(command.name, list(words), parent=context)


def test_every_ray_command_is_one_that_exists() -> None:
    told = [line for name in RUNS for line in lines(name) if re.match(r"(- )?ray [a-z]", line)]
    commands = [
        *told,
        *LAUNCHER["head_start_ray_commands"],
        *LAUNCHER["worker_start_ray_commands"],
    ]
    parsed = 0
    for command in commands:
        words = shlex.split(command.removeprefix("- "), comments=True)[1:]
        for word in words:
            assert not word.startswith(("jobs/", "cluster/")) or (ROOT / word).exists()
        if ">" in words:
            words = words[: words.index(">")]
        if words[0] != "symmetric-run":  # parsed as the script gives it, below
            parse_ray(words)
            parsed += 1
    assert parsed >= 8
    with pytest.raises(click.UsageError):
        parse_ray(["start", "--heads"])


# Doors and keys


@pytest.mark.parametrize("name", FILES)
def test_nothing_listens_to_everyone_and_nothing_goes_without_a_token(name: str) -> None:
    text = TEXTS[name]
    assert not re.search(r"0\.0\.0\.0|\[?::\]?:\d|--dashboard-host[= ](?!127\.0\.0\.1)", text)
    assert not re.search(r"disabled|--network[= ]host|hostNetwork|LoadBalancer|NodePort", text, re.IGNORECASE)
    assert set(re.findall(r"RAY_AUTH_MODE=(\w*)", text)) <= {"token"}
    assert set(re.findall(r"https?://([^:/\s]*)", text)) <= {"127.0.0.1"}
    assert set(re.findall(r"--address[= ](\S+) service/", text)) <= {"127.0.0.1"}
    assert ("RAY_AUTH_MODE=token" in text) or name in {*KUBERNETES, "constraints.txt"}


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_submits_on_the_loopback_and_lets_in_the_operator_and_prometheus(name: str) -> None:
    spec = job(name)
    assert spec["submissionMode"] == "SidecarMode"
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    policy = spec["rayClusterSpec"]["networkPolicy"]
    assert policy["mode"] == "DenyAllIngress"
    assert policy.keys() == {"mode", "head"}
    doors = {}
    for rule in policy["head"]["ingressRules"]:
        (port,), (peer,) = rule["ports"], rule["from"]
        assert port["protocol"] == "TCP"
        doors[port["port"]] = peer["podSelector"]["matchLabels"]
    assert doors == {
        8265: {"app.kubernetes.io/name": "kuberay-operator"},
        8080: {"app.kubernetes.io/name": "prometheus"},
    }


def test_the_launcher_keeps_the_dashboard_on_the_loopback() -> None:
    starts = [command for command in LAUNCHER["head_start_ray_commands"] if "ray start" in command]
    assert all("--dashboard-host=127.0.0.1" in command for command in starts)
    assert "0.0.0.0" not in json.dumps(LAUNCHER)  # in what the launcher's defaults add, either
    assert LAUNCHER["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


SECRET_NAME = re.compile(r"token|secret|passw|credential|(access|private|api)_?key", re.IGNORECASE)
SECRETS = [
    r"AKIA[0-9A-Z]{12,}",
    r"hf_[A-Za-z0-9]{8,}",
    r"-----BEGIN",
    r"--from-literal",
    r"(?i)(token|secret|password|access_key|credentials?)=(?!=|[\"']?\$)[^\s,;)]+",
    r"\b(?=\S*[0-9])(?=\S*[A-Za-z])[A-Za-z0-9+/]{32,}={0,2}",
]


@pytest.mark.parametrize("name", FILES + MONITORING)
def test_secrets_are_named_and_never_told(name: str) -> None:
    for pattern in SECRETS:
        assert re.search(pattern, TEXTS[name]) is None
    if not name.endswith(".yaml"):
        return
    for path, value in leaves(manifest(name)):
        if any(SECRET_NAME.search(key) for key in path):
            by_reference = path[-2] == "secretKeyRef" or str(value).startswith("~/")
            assert by_reference, "/".join(path)


@pytest.mark.parametrize("name", KUBERNETES)
def test_variables_that_hold_secrets_come_from_a_secret(name: str) -> None:
    held = [v for c in containers(name) for v in c["env"] if SECRET_NAME.search(v["name"])]
    assert held
    assert all("value" not in variable and "secretKeyRef" in variable["valueFrom"] for variable in held)


# Metrics


def test_prometheus_reads_the_port_that_kuberay_names_of_the_head() -> None:
    monitor = manifest("podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"] == {
        "selector": {"matchLabels": {"ray.io/node-type": "head"}},
        "podMetricsEndpoints": [{"port": "metrics"}],
    }


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TEXTS["grafana.json"])
    return found


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard without the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_asks_for_what_the_code_exports(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("stat", "timeseries")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
    for target in panel["targets"]:
        asked = set(re.findall(r"ray_\w+", target["expr"]))
        assert asked
        assert asked <= SERIES.keys()
        tags = {*TAGS, *(SERIES[name].tag for name in asked)}
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        assert {tag.strip() for tags_of in grouped for tag in tags_of.split(",")} <= tags
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= tags
        counters = {name for name in asked if SERIES[name].counter}
        assert (
            counters == set(re.findall(r"(?:rate|increase)\((\w+)", target["expr"]))
            or panel["type"] == "stat"
        )


def test_the_dashboard_shows_every_metric_and_its_panels_do_not_overlap() -> None:
    found = dashboard()
    assert found["schemaVersion"] >= 39
    asked = {name for p in panels() for t in p["targets"] for name in re.findall(r"ray_\w+", t["expr"])}
    assert asked == SERIES.keys()
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])


def test_the_dashboard_defines_the_variables_that_it_uses() -> None:
    variables = {v["name"]: v for v in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()["panels"])))
    assert used - {"__rate_interval"} == variables.keys()
    assert variables["datasource"]["type"] == "datasource"
    (name, label) = re.findall(r"label_values\((\w+), (\w+)\)", variables["output"]["query"]["query"])[0]
    assert name in SERIES
    assert label in TAGS


# Slurm


def test_the_batch_script_is_bash() -> None:
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)


def run_batch(folder: Path, ray: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script where srun starts its command once, and `ray symmetric-run` is the script given."""
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("jobs", "armo_ray", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    programs = {
        "python": f'exec {sys.executable} "$@"',
        "armo-ray": "exit 1",
        "srun": 'while [ "$1" != ray ]; do shift; done; exec "$@"',
        "hostname": 'echo "10.0.0.7 172.17.0.1 "',
        "ray": 'if [ "$1" = get-auth-token ]; then mkdir -p ~/.ray; echo t > ~/.ray/auth_token; exit; fi\n'
        f'printf "%s\\n" "$@" > {folder}/given; echo "$RAY_AUTH_MODE" > {folder}/mode\n{ray}',
    }
    for name, body in programs.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    allocation = {
        "JOB_ID": "7",
        "SUBMIT_DIR": str(folder),
        "JOB_NUM_NODES": "2",
        "CPUS_PER_TASK": "32",
        "GPUS_ON_NODE": "4",
    }
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in allocation.items()}}
    environment.update(HOME=str(folder), PATH=f"{tools}:{os.environ['PATH']}")
    command = ["bash", str(CLUSTER / "slurm.sh"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


RUN_THE_COMMAND = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'


def test_the_batch_script_starts_the_job_on_all_nodes_and_ends_with_its_status(tmp_path: Path) -> None:
    done = run_batch(tmp_path, RUN_THE_COMMAND, "jobs.score", "jobs/nightly.toml", "--dtype", "fp7")
    assert (done.returncode, "dtype" in done.stderr) == (MISUSED, True)
    given = tmp_path.joinpath("given").read_text().splitlines()
    own, command = given[: given.index("--")], given[given.index("--") + 1 :]
    assert own[:5] == ["symmetric-run", "--address", "10.0.0.7:6379", "--min-nodes", "2"]
    parse_ray(own)
    parse_ray(["start", "--head", *own[5:]])
    assert {"--num-cpus=32", "--num-gpus=4", "--dashboard-host=127.0.0.1"} == set(own[5:])
    assert command[command.index("env") + 1] == "RAY_ADDRESS=10.0.0.7:6379"
    assert command[-2:] == ["--dtype", "fp7"]


def test_the_batch_script_starts_a_whole_night_unless_told_otherwise(tmp_path: Path) -> None:
    run_batch(tmp_path, "exit 0")
    assert tmp_path.joinpath("given").read_text().splitlines()[-4:-1] == [
        "jobs.nightly",
        "jobs/night.toml",
        "--date",
    ]


def test_the_batch_script_makes_a_token_that_others_cannot_read(tmp_path: Path) -> None:
    run_batch(tmp_path, "exit 0")
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert tmp_path.joinpath("mode").read_text() == "token\n"


def test_the_batch_script_fails_where_ray_did_not_start(tmp_path: Path) -> None:
    done = run_batch(tmp_path, "exit 0")  # as symmetric-run does
    assert (done.returncode, "Ray did not start" in done.stderr) == (1, True)
