"""One pass of the decoder over a pack, up to the hidden states of the rows that a head reads.

Llama's layers (Mistral's and Qwen2's are the same) are computed here, in two functions around the attention. Neither
depends on the segments of a pack, so they compile once for all layers and packs, and the last layer computes its
queries and MLP only for the rows that the head reads. Layers may be on several devices: hidden states move to the
device of the next layer, and since nothing waits for them, the first device starts on the next pack meanwhile. Any
other decoder runs transformers' own code with the attention function registered there.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from armo_ray.engine.attention import Rule, Segments, attend
from armo_ray.engine.device import to_device
from armo_ray.engine.fixed_shape import in_blocks
from armo_ray.engine.options import Options
from armo_ray.engine.packing import Index, Pack

LLAMA_LIKE = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")

Tensor = torch.Tensor


def hidden_rows(backbone: PreTrainedModel, pack: Pack, rows: Index, options: Options) -> Tensor:
    """Final hidden states (R, H) of the tokens `rows` (R,) of a pack."""
    model: Any = backbone
    devices = layer_devices(backbone)
    ids, positions = (to_device(x, devices[0]) for x in (pack.input_ids, pack.position_ids))
    at = to_device(rows, devices[-1])
    segments = {device: Segments.of(pack, device) for device in dict.fromkeys(devices)}
    if not is_llama_like(backbone):
        inputs = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False}
        output = model(**inputs, segments=segments[devices[0]])  # passed on to packed_attention
        return output.last_hidden_state[0].index_select(0, at)  # type: ignore[no-any-return]
    hidden = model.embed_tokens(ids)
    cos, sin = (x[0] for x in model.rotary_emb(hidden, positions[None]))
    fused = options.fused_norm
    project, finish = (_compiled(f) for f in (_project, _finish)) if options.compile else (_project, _finish)
    for layer, device in zip(model.layers, devices, strict=True):
        hidden, cos, sin = (x.to(device) for x in (hidden, cos, sin))
        if options.needed_rows and layer is model.layers[-1]:
            break
        query, key, value = project(layer, fused, hidden, cos, sin)
        attended = attend(query, key, value, segments[device], _rule(layer.self_attn))
        hidden = finish(layer, fused, hidden, attended)
    if options.needed_rows:
        hidden = _last_layer(layer, fused, hidden, cos, sin, at, Segments.of_rows(pack, rows, device))
    else:
        hidden = hidden.index_select(0, at)
    return _norm(model.norm, fused, hidden)


def is_llama_like(backbone: PreTrainedModel) -> bool:
    """Whether this module computes the decoder's layers, and the last one only for the rows that the head reads."""
    layers: Any = backbone.layers
    return type(layers[0]).__name__ in LLAMA_LIKE


def layer_devices(backbone: PreTrainedModel) -> list[torch.device]:
    """The device of each layer, from the first to the last."""
    layers: Any = backbone.layers
    return [next(layer.parameters()).device for layer in layers]


def _project(layer: Any, fused: bool, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (T, heads, head_dim)."""
    x, attention = _norm(layer.input_layernorm, fused, hidden), layer.self_attn
    query, key, value = (
        project(x).view(len(x), -1, attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return _rotated(query, cos, sin), _rotated(key, cos, sin), value


def _rule(attention: Any) -> Rule:
    # Mistral has the window in its config, Qwen2 on the layers that use one, and Llama has none
    holder = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window = holder.__dict__.get("sliding_window")
    return Rule(attention.scaling, window)


def _finish(layer: Any, fused: bool, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after its attention (T, heads, head_dim); returns (T, H)."""
    hidden = hidden + layer.self_attn.o_proj(attended.flatten(1))
    return hidden + layer.mlp(_norm(layer.post_attention_layernorm, fused, hidden))  # type: ignore[no-any-return]


def _last_layer(
    layer: Any, fused: bool, hidden: Tensor, cos: Tensor, sin: Tensor, at: Tensor, segments: Segments
) -> Tensor:
    """The last layer: keys and values for every token, everything else for the tokens `at` (R,); returns (R, H)."""
    x, attention = _norm(layer.input_layernorm, fused, hidden), layer.self_attn
    key, value = (
        project(x).view(len(x), -1, attention.head_dim) for project in (attention.k_proj, attention.v_proj)
    )
    query = in_blocks(attention.q_proj, x[at]).view(len(at), -1, attention.head_dim)
    query, key = _rotated(query, cos[at], sin[at]), _rotated(key, cos, sin)
    attended = attend(query, key, value, segments, _rule(attention))
    return in_blocks(lambda h, a: _finish(layer, fused, h, a), hidden[at], attended.flatten(1))


def _norm(norm: Any, fused: bool, x: Tensor) -> Tensor:
    if not fused:
        return norm(x)  # type: ignore[no-any-return]
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + rotate_half(x) * sin[:, None]  # type: ignore[no-any-return]


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for any number of tokens, once for all layers."""
    compiled = torch.compile(function)

    def call(layer: Any, fused: bool, *tensors: Tensor) -> Any:
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(layer, fused, *tensors)

    return call
