"""One pass of the decoder over a pack, up to the hidden states of the rows that a head reads.

The layers of Llama, Mistral, Qwen2 and Qwen3 are computed here, in two functions around the attention. Neither
depends on the segments of a pack, so they compile once for all layers and packs, and the last layer computes its
queries and MLP only for the rows that the head reads. Layers may be on several devices: hidden states move to the
device of the next layer, and since nothing waits for them, the first device starts on the next pack meanwhile. Any
other decoder runs transformers' own code, with the attention function in `other_decoders`, and so does an encoder,
with an attention mask.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from armo_ray.engine.attention import Segments, attend
from armo_ray.engine.batches import Batch
from armo_ray.engine.device import to_device
from armo_ray.engine.fixed_shape import in_blocks
from armo_ray.engine.fp8 import quantized_once
from armo_ray.engine.llama import Llama
from armo_ray.engine.options import Options
from armo_ray.engine.packing import Index, Pack

Tensor = torch.Tensor


def hidden_rows(backbone: nn.Module, pack: Pack | Batch, rows: Index, options: Options) -> Tensor:
    """Final hidden states (R, H) of the tokens `rows` (R,) of a pack, or of an encoder's batch."""
    devices = layer_devices(backbone)
    if isinstance(pack, Batch):
        return _encoded_rows(backbone, pack, to_device(rows, devices[0]))
    ids, positions = (to_device(x, devices[0]) for x in (pack.input_ids, pack.position_ids))
    at = to_device(rows, devices[-1])
    segments = {device: Segments.of(pack, device, options.kernel) for device in dict.fromkeys(devices)}
    if not isinstance(backbone, Llama):
        inputs = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False}
        output = backbone(**inputs, segments=segments[devices[0]])  # passed on to packed_attention
        return output.last_hidden_state[0].index_select(0, at)  # type: ignore[no-any-return]
    layers: Any = backbone.layers
    hidden, (cos, sin) = backbone.embed_tokens(ids), backbone.rotations(positions)
    project, finish = (_compiled(f) for f in (_project, _finish)) if options.compile else (_project, _finish)
    for layer, device in zip(layers, devices, strict=True):
        hidden, cos, sin = (x.to(device) for x in (hidden, cos, sin))
        if options.needed_rows and layer is layers[-1]:
            break
        query, key, value = project(layer, hidden, cos, sin)
        attended = attend(query, key, value, segments[device], layer.self_attn.rule)
        hidden = finish(layer, hidden, attended)
    if options.needed_rows:
        read = Segments.of_rows(pack, rows, device, options.kernel)
        hidden = _last_layer(layer, hidden, cos, sin, at, read)
    else:
        hidden = hidden.index_select(0, at)
    normed: Tensor = backbone.norm(hidden)
    return normed


def _encoded_rows(backbone: nn.Module, batch: Batch, at: Tensor) -> Tensor:
    """Final hidden states (R, H) of the tokens `at` (R,) of a batch."""
    ids = to_device(batch.input_ids, at.device).view(-1, batch.width)
    mask = to_device((np.arange(batch.width) < batch.lengths[:, None]).astype(np.int64), at.device)
    hidden: Tensor = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, at)


def layer_devices(backbone: nn.Module) -> list[torch.device]:
    """The device of each layer, from the first to the last."""
    layers: Any = backbone.layers
    return [next(layer.parameters()).device for layer in layers]


def _project(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, heads, head_dim)."""
    attention = layer.self_attn
    x = quantized_once(layer.input_layernorm(hidden), attention.q_proj, attention.k_proj, attention.v_proj)
    return attention.query(x, cos, sin), attention.key(x, cos, sin), attention.value(x)


def _finish(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after its attention (T, heads, head_dim); returns (T, H)."""
    hidden = hidden + layer.self_attn.o_proj(attended.flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


def _last_layer(
    layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, at: Tensor, segments: Segments
) -> Tensor:
    """The last layer: keys and values for every token, everything else for the tokens `at` (R,); returns (R, H)."""
    x, attention = layer.input_layernorm(hidden), layer.self_attn
    shared = quantized_once(x, attention.k_proj, attention.v_proj)
    key, value = attention.key(shared, cos, sin), attention.value(shared)
    query = in_blocks(attention.query, *(t.index_select(0, at) for t in (x, cos, sin)))
    attended = attend(query, key, value, segments, attention.rule)
    return in_blocks(lambda h, a: _finish(layer, h, a), hidden.index_select(0, at), attended.flatten(1))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for any number of tokens, once for all layers."""
    compiled = torch.compile(function)

    def call(layer: Any, *tensors: Tensor) -> Any:
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(layer, *tensors)

    return call
