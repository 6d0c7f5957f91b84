"""Training of a gate's network: standardized hidden states, AdamW with a cosine, the step of least validation loss."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from armo_ray.fitting.gates import RECIPE, Layers, Recipe
from armo_ray.fitting.statistics import Floats

logger = logging.getLogger(__name__)

Tensor = torch.Tensor
Prompts = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

_BLOCK = 8192  # rows at a time, where all are read
_THREAD = (
    1 << 27
)  # multiplications of a step that occupy a thread: with fewer, threads mostly wait for each other
_GAIN = 1e-4  # of the loss: a smaller one is none
_LEAST = 1e-6  # weight at the start
_LOGGED = 10.0  # seconds between lines


def fit_to_pairs(
    prompts: Prompts,
    of: Index,
    differences: Floats,
    beta: float,
    temperature: float,
    seed: int = 0,
    recipe: Recipe = RECIPE,
) -> Layers:
    """Layers of the gate that explains pairs best: the mean of softplus(-beta * margin) is least.

    Args:
        prompts: (P, H) hidden states; `of` (n,) is the place of each pair's prompt in them.
        differences: (n, K) rewards, chosen less rejected.
        temperature: Divides the network's output before the softmax.
    """
    scaled = torch.from_numpy(np.ascontiguousarray(beta * differences, np.float32))

    def loss(logits: Tensor, rows: Index) -> Tensor:
        weights = (logits / temperature).softmax(dim=1)
        return F.softplus(-(weights * scaled[torch.from_numpy(rows)]).sum(dim=1)).mean()

    return _trained(prompts, of, differences.shape[1], loss, seed, recipe)


def fit_to_weights(
    prompts: Prompts,
    weights: Floats,
    temperature: float,
    seed: int = 0,
    recipe: Recipe = RECIPE,
) -> Layers:
    """Layers of the gate whose weights are nearest to given ones (P, K), which sum to 1, in cross-entropy."""
    targets = torch.from_numpy(np.ascontiguousarray(weights, np.float32))

    def loss(logits: Tensor, rows: Index) -> Tensor:
        return (
            -(targets[torch.from_numpy(rows)] * (logits / temperature).log_softmax(dim=1)).sum(dim=1).mean()
        )

    start = temperature * np.log(np.maximum(weights.mean(axis=0), _LEAST))
    return _trained(prompts, np.arange(len(prompts)), weights.shape[1], loss, seed, recipe, start)


def _trained(
    prompts: Prompts,
    of: Index,
    outputs: int,
    loss: Callable[[Tensor, Index], Tensor],
    seed: int,
    recipe: Recipe,
    start: Floats | None = None,
) -> Layers:
    """Train on the rows of most prompts, and keep the layers with the least loss on those of the others."""
    mean, deviation = _moments(prompts)
    order = np.random.default_rng(seed)
    validated = np.zeros(len(prompts), bool)
    validated[order.permutation(len(prompts))[: len(prompts) // recipe.validation]] = True
    validation, rows = np.flatnonzero(validated[of]), np.flatnonzero(~validated[of])

    def batch(chosen: Index) -> Tensor:
        return torch.from_numpy((prompts[of[chosen]] - mean) / deviation)

    size = min(recipe.batch, len(rows)) * prompts.shape[1] * recipe.width
    with torch.random.fork_rng(devices=[]), _threads(size // _THREAD):
        torch.manual_seed(seed)
        layers = _layers(prompts.shape[1], outputs, recipe, start)
        parameters = list(layers.parameters())
        optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
        progress = _Progress(recipe, layers)
        for step, chosen in enumerate(_batches(rows, recipe, order), start=1):
            optimizer.zero_grad()
            fitted = loss(layers(batch(chosen)), chosen)
            fitted.backward()
            optimizer.step()
            schedule.step()
            progress.add(float(fitted.detach()))
            if step % recipe.every == 0 or step == recipe.steps:
                now = _mean_loss(layers, batch, loss, validation) if len(validation) else None
                if progress.is_over(step, now):
                    break
    return _folded(progress.best if len(validation) else _copied(layers), mean, deviation)


class _Progress:
    """The best layers so far, and whether more steps are of use."""

    def __init__(self, recipe: Recipe, layers: torch.nn.Sequential) -> None:
        self.best = _copied(layers)
        self._recipe, self._layers = recipe, layers
        self._losses: list[float] = []
        self._least = self._beaten = np.inf  # the least loss, and the one that counts as a gain
        self._since, self._logged = 0, time.monotonic()

    def add(self, loss: float) -> None:
        """Take in the loss of a step."""
        self._losses.append(loss)

    def is_over(self, step: int, validation: float | None) -> bool:
        """Take in the validation after a step. Without one, the mean loss of the steps since the last is taken."""
        fitted, self._losses = float(np.mean(self._losses)), []
        now = fitted if validation is None else validation
        if now < self._least:
            self._least = now
            self.best = _copied(self._layers)
        if now < self._beaten - _GAIN * abs(self._beaten) or not np.isfinite(self._beaten):
            self._beaten, self._since = now, 0
        else:
            self._since += 1
        over = self._since >= self._recipe.patience or step == self._recipe.steps
        if over or time.monotonic() - self._logged > _LOGGED:
            self._logged = time.monotonic()
            other = (
                ""
                if validation is None
                else f", of validated prompts {validation:.4f}, at best {self._least:.4f}"
            )
            how = (
                " at most"
                if not over
                else "; trained"
                if step == self._recipe.steps
                else "; no longer better"
            )
            logger.info("gate: step %d of %d%s: loss %.4f%s", step, self._recipe.steps, how, fitted, other)
        return over


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """As many threads, but at least one, and no more than there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(wanted, before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layers(size: int, outputs: int, recipe: Recipe, start: Floats | None) -> torch.nn.Sequential:
    """The network; its last layer begins at 0, or at the given biases: all prompts begin with the same weights."""
    widths = [size, *[recipe.width] * recipe.hidden_layers]
    parts: list[torch.nn.Module] = []
    for wide_in, wide_out in pairwise(widths):
        parts += [torch.nn.Linear(wide_in, wide_out), torch.nn.ReLU(), torch.nn.Dropout(recipe.dropout)]
    last = torch.nn.Linear(widths[-1], outputs)
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.from_numpy(np.zeros(outputs) if start is None else start))
    return torch.nn.Sequential(*parts, last)


def _batches(rows: Index, recipe: Recipe, order: np.random.Generator) -> Iterator[Index]:
    """Rows of each step: all in a new order, again and again."""
    batch, left = min(recipe.batch, len(rows)), rows[:0]
    for _ in range(recipe.steps):
        if len(left) < batch:
            left = order.permutation(rows)
        yield np.sort(left[:batch])  # in the order of a file
        left = left[batch:]


def _mean_loss(
    layers: torch.nn.Sequential,
    batch: Callable[[Index], Tensor],
    loss: Callable[[Tensor, Index], Tensor],
    rows: Index,
) -> float:
    layers.eval()
    total = 0.0
    with torch.inference_mode():
        for begin in range(0, len(rows), _BLOCK):
            part = rows[begin : begin + _BLOCK]
            total += float(loss(layers(batch(part)), part)) * len(part)
    layers.train()
    return total / len(rows)


def _moments(prompts: Prompts) -> tuple[Prompts, Prompts]:
    """The mean and the standard deviation (H,) of hidden states; 1 for a unit that is constant."""
    total, squares = np.zeros(prompts.shape[1]), np.zeros(prompts.shape[1])
    blocks = [slice(begin, begin + _BLOCK) for begin in range(0, len(prompts), _BLOCK)]
    for block in blocks:
        total += prompts[block].sum(axis=0, dtype=np.float64)
    mean = total / len(prompts)
    for block in blocks:
        squares += np.square(prompts[block] - mean).sum(axis=0)
    deviation = np.sqrt(squares / len(prompts))
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1.0
    deviation[deviation == 0] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def _copied(layers: torch.nn.Sequential) -> list[tuple[Floats, Floats]]:
    return [
        (part.weight.detach().double().numpy().copy(), part.bias.detach().double().numpy().copy())
        for part in layers
        if isinstance(part, torch.nn.Linear)
    ]


def _folded(layers: list[tuple[Floats, Floats]], mean: Prompts, deviation: Prompts) -> Layers:
    """Layers that take hidden states as they are, in place of standardized ones."""
    weight, bias = layers[0]
    weight = weight / deviation
    layers = [(weight, bias - weight @ mean), *layers[1:]]
    return tuple((weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in layers)
