"""The modules of Llama-like decoders: Llama, Mistral, Qwen2, and Qwen3, which also norms queries and keys.

Their tensors are named as in checkpoints. Weights start on the meta device, without memory.
"""

from dataclasses import asdict
from types import SimpleNamespace

import torch
from torch import nn

from armo_ray.engine.attention import Rule
from armo_ray.engine.fp8 import Input, quantized_once
from armo_ray.engine.llama_config import ACTIVATIONS, LlamaConfig

Tensor = torch.Tensor


class Llama(nn.Module):
    """The embeddings, layers and last norm of a decoder."""

    frequencies: Tensor  # (head_dim / 2,) float32, radians per position

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size, device="meta")
        # initializing an embedding on the meta device would import the compiler, which takes 2 s
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList(Layer(config, window) for window in config.windows)
        self.norm = _norm(config.hidden_size, config)
        frequencies, self.rotary_scale = rotary_frequencies(config)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights that are not quantized."""
        return self.embed_tokens.weight.dtype

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, head_dim) for the rotary embedding of positions (T,)."""
        # an elementwise product in float32, which no setting of matrix products rounds
        angles = positions.unsqueeze(1).float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale
        return cos.to(self.dtype), sin.to(self.dtype)


class Layer(nn.Module):
    """One layer: attention and MLP, each after a norm."""

    def __init__(self, config: LlamaConfig, window: int | None) -> None:
        super().__init__()
        self.input_layernorm = _norm(config.hidden_size, config)
        self.self_attn = Attention(config, window)
        self.post_attention_layernorm = _norm(config.hidden_size, config)
        self.mlp = Mlp(config)


class Attention(nn.Module):
    """The projections around attention."""

    def __init__(self, config: LlamaConfig, window: int | None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rule = Rule(config.head_dim**-0.5, window)
        wide, narrow = (
            heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = _linear(config.hidden_size, wide, config.qkv_bias)
        self.k_proj = _linear(config.hidden_size, narrow, config.qkv_bias)
        self.v_proj = _linear(config.hidden_size, narrow, config.qkv_bias)
        self.o_proj = _linear(wide, config.hidden_size, config.attention_bias)
        normed = config.model_type == "qwen3"
        self.q_norm, self.k_norm = (
            _norm(config.head_dim, config) if normed else nn.Identity() for _ in range(2)
        )

    def query(self, x: Input, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries (T, heads, head_dim) from normed hidden states (T, H)."""
        return _rotated(self.q_norm(self._split(self.q_proj(x))), cos, sin)

    def key(self, x: Input, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys (T, kv_heads, head_dim)."""
        return _rotated(self.k_norm(self._split(self.k_proj(x))), cos, sin)

    def value(self, x: Input) -> Tensor:
        """Values (T, kv_heads, head_dim)."""
        return self._split(self.v_proj(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.head_dim)


class Mlp(nn.Module):
    """The gated MLP of a layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = _linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = _linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = _linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Maps normed hidden states (T, H) to what the layer adds to them."""
        shared = quantized_once(x, self.gate_proj, self.up_proj)
        out: Tensor = self.down_proj(self.activation(self.gate_proj(shared)) * self.up_proj(shared))
        return out


def rotary_frequencies(config: LlamaConfig) -> tuple[Tensor, float]:
    """Radians per position (head_dim / 2,) in float32, and a factor for all cosines and sines."""
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / rope["rope_theta"] ** exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = SimpleNamespace(**asdict(config), standardize_rope_params=lambda: None)
    frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](known)
    return frequencies, float(scale)


def _norm(size: int, config: LlamaConfig) -> nn.RMSNorm:
    return nn.RMSNorm(size, config.rms_norm_eps, device="meta")


def _linear(size_in: int, size_out: int, bias: bool) -> nn.Linear:
    return nn.Linear(size_in, size_out, bias, device="meta")


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (T, heads, head_dim) turned by the angles of their positions."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    (left, right), (sin_left, sin_right) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    out = x * cos
    out_left, out_right = out.chunk(2, dim=-1)
    out_left.addcmul_(
        right, sin_left, value=-1
    )  # in place: half the bytes of x * cos + cat(-right, left) * sin
    out_right.addcmul_(left, sin_right)
    return out
