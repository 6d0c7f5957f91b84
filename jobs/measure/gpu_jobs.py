"""Stages of `jobs.measure.gpu` that need a checkpoint on a disk, other programs, or several GPUs."""

import copy
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from armo_ray.bench import models
from armo_ray.bench.options import Settings
from armo_ray.engine import RewardModel
from armo_ray.engine.backbone import place
from armo_ray.engine.fp8 import quantize_
from armo_ray.tiny.armorm import random_head, write_tiny_model
from jobs.measure.gpu_bench import Bench, UnableError

FILES = 4
SAMPLE = Path(__file__).parents[1] / "samples" / "llmbar.jsonl"
SAMPLES = 8  # copies of the sample: 2,080 candidates
LAYERS = 80


def write_checkpoint(bench: Bench, path: Path) -> float:
    """Write the model as a checkpoint with the tiny model's tokenizer; returns its size in GB."""
    write_tiny_model(path)
    for file in path.glob("model*"):
        file.unlink()
    fields = json.loads((path / "config.json").read_text("utf-8"))
    fields |= _sizes(bench.model.backbone, fields["vocab_size"])
    (path / "config.json").write_text(json.dumps(fields), "utf-8")
    state = {f"model.{name}": tensor for name, tensor in bench.model.backbone.state_dict().items()}
    embeddings = state["model.embed_tokens.weight"]
    more = fields["vocab_size"] - len(embeddings)  # the tiny shape has fewer than the tokenizer
    if more:
        state["model.embed_tokens.weight"] = torch.nn.functional.pad(embeddings, (0, 0, 0, more))
    weight_map: dict[str, str] = {}
    for i in range(FILES):
        tensors = {name: state[name].cpu().contiguous() for name in list(state)[i::FILES]}
        weight_map |= _save(tensors, path, i)
    weight_map |= _save(random_head(fields, torch.Generator().manual_seed(0)), path, FILES)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e9


def _sizes(backbone: Any, vocabulary: int) -> dict[str, int]:
    """The fields of config.json that depend on the shape."""
    mlp, attention = backbone.layers[0].mlp, backbone.layers[0].self_attn
    return {
        "hidden_size": mlp.gate_proj.in_features,
        "intermediate_size": mlp.gate_proj.out_features,
        "num_attention_heads": attention.q_proj.out_features // attention.head_dim,
        "num_hidden_layers": len(backbone.layers),
        "num_key_value_heads": attention.k_proj.out_features // attention.head_dim,
        "vocab_size": max(len(backbone.embed_tokens.weight), vocabulary),
    }


def _save(tensors: dict[str, torch.Tensor], path: Path, i: int) -> dict[str, str]:
    file = f"model-{i + 1:05}-of-{FILES + 1:05}.safetensors"
    save_file(tensors, path / file, {"format": "pt"})
    return dict.fromkeys(tensors, file)


def load(bench: Bench) -> None:
    """Load a checkpoint of the model with its files in the page cache, then from the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        started = time.perf_counter()
        gigabytes = write_checkpoint(bench, path)
        bench.say(gigabytes=round(gigabytes, 2), write_seconds=round(time.perf_counter() - started, 1))
        bench.release()
        for cache in ("warm", "cold"):
            if cache == "cold":
                _drop_from_cache(path)
            started = time.perf_counter()
            model = RewardModel.load(str(path), device=str(bench.device))
            bench.sync()
            seconds = time.perf_counter() - started
            bench.say(cache=cache, seconds=round(seconds, 2), token_budget=model.options.token_budget)
            del model
            bench.empty()


def _drop_from_cache(path: Path) -> None:
    for file in path.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # pages that are not written yet stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def whole_benchmark(bench: Bench) -> None:
    """`armo-ray bench` of one workload, with the loop of the model card and padded batches."""
    bench.release()
    names = ["one-by-one", "padded-8", "engine"]
    command = [sys.executable, "-m", "armo_ray.bench", "--shape", bench.shape, "--device", bench.device.type]
    if bench.dry:
        command += ["--candidates", "4", "--length-scale", "0.1", "--rounds", "1"]
    else:
        names = [*names, "padded-32", "sorted", "packed", "packed+shared", "engine+compile", "fp8+compile"]
    limit = max(1, int(bench.left() - 30))
    command += ["--workloads", "rollouts-8", "--reference", "8", "--time-limit", str(limit)]
    command += ["--contenders", *names, "--json", str(bench.out / "bench.json")]
    status, text = bench.command("bench", command, bench.left())
    if status:
        raise RuntimeError(f"bench: status {status}: {text[-500:]}")
    result = json.loads((bench.out / "bench.json").read_text("utf-8"))
    for contender in result["workloads"][0]["contenders"]:
        bench.say(bench=contender["name"], error=contender["error"], measures=contender.get("measures"))


def job(bench: Bench) -> None:
    """A whole job through Ray, compared with the engine alone."""
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder, "packages")
        if importlib.util.find_spec("ray") is None:
            _install(bench, packages)
        write_checkpoint(bench, Path(folder, "model"))
        bench.release()
        shards = [Path(folder, f"{i}.jsonl") for i in range(2 if bench.dry else SAMPLES)]
        for shard in shards:
            shard.write_bytes(SAMPLE.read_bytes())
        command = [sys.executable, "-m", "jobs.measure.steady", "--model", f"{folder}/model", "--input"]
        command += [*map(str, shards), "--unit-rows", "64"]
        paths = os.pathsep.join([os.environ["PYTHONPATH"], str(packages)])
        status, text = bench.command("job", command, bench.left(), PYTHONPATH=paths)
    bench.say(job=text.strip().splitlines()[-4:])
    if status:
        raise RuntimeError(f"job: status {status}: {text[-500:]}")


def _install(bench: Bench, packages: Path) -> None:
    """Unpack the wheels in --wheels, without resolving their dependencies."""
    wheels = sorted(map(str, bench.wheels.glob("*.whl"))) if bench.wheels else []
    if not wheels:
        raise UnableError("ray is not installed, and --wheels names no folder with wheels")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(packages)]
    status, text = bench.command("pip", [*command, *wheels], 120)
    if status:
        raise RuntimeError(f"pip: status {status}: {text[-500:]}")


def split(bench: Bench) -> None:
    """The 70B shape in float8 with half of its layers on each of two devices."""
    from jobs.measure.gpu_stages import speed

    if not bench.dry and torch.cuda.device_count() < 2:
        raise UnableError("needs two GPUs")
    bench.release()
    devices = [torch.device("cpu")] * 2 if bench.dry else [torch.device("cuda", i) for i in (1, 0)]
    shape = "tiny" if bench.dry else "llama3-70b-layer"
    subject = models.load(Settings(shape=shape), "bfloat16", devices[-1])  # where the head stays
    backbone: Any = subject.model.backbone
    quantize_(backbone)
    count = 4 if bench.dry else LAYERS
    while len(backbone.layers) < count:
        first_half = len(backbone.layers) < count // 2
        backbone.layers.append(copy.deepcopy(backbone.layers[0]).to(devices[0 if first_half else 1]))
    place(backbone, devices)
    model = RewardModel(backbone, subject.model.head, subject.model.options)
    bench.say(layers=count, devices=[str(device) for device in devices])
    speed(bench, "split-70b", model.score)
