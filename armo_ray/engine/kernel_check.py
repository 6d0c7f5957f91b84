"""A check at load that torch's attention kernel runs on this device with this model, and is right."""

from typing import Any

import numpy as np
import torch
from torch import nn

from armo_ray.engine.attention import PLAIN, Rule, Segments, attend, has_kernel, kernel_takes
from armo_ray.engine.device import is_out_of_memory
from armo_ray.engine.packing import make_packs
from armo_ray.errors import ConfigError

# In a random product of bfloat16 numbers 3e-3 are usual; a mask that is off by a token gives 0.5 and more.
_LARGEST_ERROR = 0.03
_WINDOW = 3
# a prompt of five tokens, two responses of five and one of a single token
_SEQUENCES = [np.array([*range(5), *own], np.int32) for own in (range(10, 15), range(20, 25), [30])]


@torch.inference_mode()
def kernel_fault(backbone: nn.Module, device: torch.device) -> str | None:
    """Why the kernel cannot be used for a decoder whose layers are on `device`; None if it can, or is not meant to be.

    Raises ConfigError if it runs and gives wrong results.
    """
    (pack,) = make_packs(_SEQUENCES, [[0]] * len(_SEQUENCES), 64)
    query, key, value = _states(backbone, len(pack.input_ids), device)
    if not has_kernel(device) or query.dtype == torch.float32:
        return None
    config: Any = backbone.config
    if getattr(config, "attn_logit_softcapping", None):
        return "it does not cap attention logits, as this model does"
    if not kernel_takes(query, PLAIN):
        return f"it does not take heads of {query.shape[-1]} dimensions"
    segments = Segments.of(pack, device)
    for rule in filter(lambda rule: kernel_takes(query, rule), (PLAIN, Rule(window=_WINDOW))):
        try:
            actual = attend(query, key, value, segments, rule)
            error = _error(actual, attend(query.float(), key.float(), value.float(), segments, rule))
        except (RuntimeError, ValueError, NotImplementedError, ImportError) as failure:
            if is_out_of_memory(failure):
                raise
            return str(failure).strip().splitlines()[0]
        if not error < _LARGEST_ERROR:  # or not a number
            raise ConfigError(
                f"device {device}: the attention kernel of torch {torch.__version__} gives wrong results here, off by "
                f"{error:.2g} of their size. Use another version of torch, or --dtype float32, which does without it"
            )
    return None


def _states(
    backbone: Any, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random queries, keys and values, with the heads and the dtype of a decoder."""
    config, generator = backbone.config, torch.Generator().manual_seed(0)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = (heads, *[getattr(config, "num_key_value_heads", None) or heads] * 2)
    states = (torch.randn(tokens, n, head_dim, generator=generator) for n in groups)
    query, key, value = (x.to(device, backbone.dtype) for x in states)
    return query, key, value


def _error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.float() - exact).norm() / exact.norm())
