"""KubeRay's ray.io/v1 schemas cut down to the fields that cluster/ uses: any other field is an error.

Types, enumerations and required fields are those of the CRDs of KubeRay 1.7 (Apache-2.0); where the CRDs are at
hand, a test compares. Two rules that KubeRay keeps in code are kept by tests.
"""

from typing import Any

import jsonschema

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
QUANTITY: Schema = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
}


def struct(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


SECRET = struct("key", name=STRING, key=STRING, optional=BOOLEAN)
FROM_SECRET = struct(secretKeyRef=SECRET)
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}

CONTAINER = struct(
    "name",
    name=STRING,
    image=STRING,
    securityContext=struct(allowPrivilegeEscalation=BOOLEAN, capabilities=struct(drop=several(STRING))),
    env=several(struct("name", name=STRING, value=STRING, valueFrom=FROM_SECRET)),
    volumeMounts=several(struct("mountPath", "name", name=STRING, mountPath=STRING)),
    resources=struct(requests=QUANTITIES, limits=QUANTITIES),
)
POD = struct(
    spec=struct(
        "containers",
        serviceAccountName=STRING,
        nodeSelector=STRINGS,
        tolerations=several(struct(key=STRING, operator=STRING, effect=STRING)),
        securityContext=struct(runAsNonRoot=BOOLEAN, runAsUser=INTEGER, fsGroup=INTEGER),
        containers=several(CONTAINER),
        volumes=several(
            struct("name", name=STRING, persistentVolumeClaim=struct("claimName", claimName=STRING))
        ),
    )
)
PEER = struct(namespaceSelector=struct(matchLabels=STRINGS), podSelector=struct(matchLabels=STRINGS))
PORT = struct(protocol=STRING, port={"anyOf": [{"type": "integer"}, {"type": "string"}]})
INGRESS = struct("from", "ports", **{"from": several(PEER)}, ports=several(PORT))

CLUSTER_SPEC = struct(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=struct("mode", mode=one_of("disabled", "token")),
    networkPolicy=struct(
        "mode",
        mode=one_of("DenyAll", "DenyAllIngress", "DenyAllEgress"),
        head=struct(ingressRules=several(INGRESS)),
    ),
    gcsFaultToleranceOptions=struct(redisAddress=STRING, redisPassword=struct(valueFrom=FROM_SECRET)),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=struct(version=one_of("v1", "v2"), idleTimeoutSeconds=INTEGER),
    headGroupSpec=struct("template", rayStartParams=STRINGS, template=POD),
    workerGroupSpecs=several(
        struct(
            "groupName",
            "minReplicas",  # these two have defaults, which Ray's autoscaler does not know
            "maxReplicas",
            "template",
            groupName=STRING,
            replicas=INTEGER,
            minReplicas=INTEGER,
            maxReplicas=INTEGER,
            rayStartParams=STRINGS,
            template=POD,
        )
    ),
)
JOB_SPEC = struct(
    "entrypoint",
    "rayClusterSpec",
    entrypoint=STRING,
    submissionMode=STRING,
    backoffLimit=INTEGER,
    activeDeadlineSeconds=INTEGER,
    preRunningDeadlineSeconds=INTEGER,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=INTEGER,
    rayClusterSpec=CLUSTER_SPEC,
)
CRON_SPEC = struct(
    "schedule",
    "jobTemplate",
    schedule=STRING,
    timeZone=STRING,
    suspend=BOOLEAN,
    jobTemplate=JOB_SPEC,
)
SPECS = {"RayJob": JOB_SPEC, "RayCronJob": CRON_SPEC}


def faults(manifest: Schema) -> list[str]:
    """What the schema has against a manifest."""
    kind = manifest.get("kind")
    if kind not in SPECS:
        return [f"kind {kind}: expected {', '.join(SPECS)}"]
    schema = struct(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion=one_of("ray.io/v1"),
        kind=STRING,
        metadata=struct(name=STRING, generateName=STRING),
        spec=SPECS[kind],
    )
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, fault.path))}: {fault.message}" for fault in found]


def unfaithful(reduced: Schema, full: Schema, path: str = "spec") -> list[str]:
    """Where the reduced schema allows what the full one does not, or asks for less."""
    found = []
    for word in ("type", "enum", "pattern", "anyOf"):
        if reduced.get(word) != full.get(word) and not (word == "type" and "anyOf" in reduced):
            found.append(f"{path}: {word} {reduced.get(word)} is {full.get(word)}")
    known = full.get("properties", {})
    asked = {name for name in full.get("required", []) if "default" not in known.get(name, {})}
    if missing := asked - set(reduced.get("required", [])):
        found.append(f"{path}: {sorted(missing)} required")
    for name, schema in reduced.get("properties", {}).items():
        if name not in known:
            found.append(f"{path}/{name}: unknown")
        else:
            found += unfaithful(schema, known[name], f"{path}/{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(reduced.get(word), dict):
            found += unfaithful(reduced[word], full.get(word) or {}, f"{path}/{word}")
    return found
