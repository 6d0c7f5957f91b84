"""Packs: flat arrays of tokens in which every shared prefix occurs once.

Causal hidden states depend only on the tokens before them, so sequences with a common prefix can share its
computation. The sequences of one call are sorted, folded into prefix trees by their longest common prefixes, and the
trees are placed into packs of at most `token_budget` tokens by first-fit-decreasing. A tree larger than the budget
is split below its nodes; only then is a prefix computed more than once. Packing takes about 30 µs per sequence and
reaches 89-99 % of the deduplication ratio.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A shorter common prefix does not pay for its own segment; all Llama-3 conversations share 5 tokens.
MIN_SHARED_TOKENS = 16
FILLER_TOKENS = 64  # length of a dummy segment, short because attention over a long one is costly

Ids = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pack:
    """The input of one forward pass: T tokens in S segments.

    The queries of segment s are the tokens [cu_q[s], cu_q[s+1]) of the pack. They attend to the tokens
    kv_index[cu_k[s]:cu_k[s+1]], the last of which are the segment's own (causal mask, aligned bottom-right).
    """

    input_ids: Index  # (T,)
    position_ids: Index  # (T,)
    cu_q: Index  # (S + 1,)
    cu_k: Index  # (S + 1,)
    kv_index: Index  # (cu_k[-1],)
    sequences: Index  # (C,) indices of the caller's sequences that are read in this pack
    read_index: Index  # (cu_read[-1],) the tokens of the pack that are read
    cu_read: Index  # (C + 1,) sequence c is read at read_index[cu_read[c]:cu_read[c + 1]]
    targets: Index  # (cu_read[-1],) ids of the tokens after those that are read; the last token's own where none is
    num_tokens: int  # number of tokens that are not filler; they come first


@dataclass
class Node:
    """Tokens [start, stop) of sequence `source`, shared by every sequence that ends at this node or below."""

    source: int
    start: int
    stop: int
    parent: "Node | None"
    total: int = 0  # number of tokens of this node and all nodes below it

    def __post_init__(self) -> None:
        self.children: list[Node] = []
        self.ends: list[int] = []  # sequences whose last token is the last one of this node

    @property
    def size(self) -> int:
        """The number of tokens of this node."""
        return self.stop - self.start


def make_packs(
    sequences: Sequence[Ids],
    reads: Sequence[Sequence[int]],
    token_budget: int,
    share: bool = True,
    fixed_size: bool = False,
) -> Iterator[Pack]:
    """Packs that together read every sequence once: sequence i at the positions reads[i].

    Args:
        sequences: token ids of whole conversations, none of them empty.
        reads: for each sequence, the positions that a head reads, in the head's order.
        token_budget: maximum number of tokens in a pack; a longer sequence gets its own pack.
        share: compute common prefixes and equal sequences once; otherwise each sequence is one segment.
        fixed_size: pad every pack to `token_budget` tokens with dummy segments that are never read.
    """
    roots = fold(sequences) if share else _unshared(sequences)
    for nodes in first_fit_decreasing(roots, token_budget):
        yield _build(nodes, sequences, reads, token_budget if fixed_size else 0)


def fold(sequences: Sequence[Ids]) -> list[Node]:
    """The prefix trees of the sequences."""
    keys = [ids.astype(">u4").tobytes() for ids in sequences]  # big-endian bytes sort as the ids do
    order = sorted(range(len(keys)), key=keys.__getitem__)
    roots: list[Node] = []
    path: list[Node] = []  # from the root to the end of the previous sequence
    for rank, i in enumerate(order):
        ids = sequences[i]
        shared = _common_prefix(sequences[order[rank - 1]], ids) if rank else 0
        while path and path[-1].start >= shared:
            path.pop()
        if path and shared < path[-1].stop and shared - path[-1].start < MIN_SHARED_TOKENS:
            path.pop()
        if path and shared < path[-1].stop:
            path[-1] = _split(path[-1], shared, roots)
        start = path[-1].stop if path else 0
        if start < len(ids):
            node = Node(i, start, len(ids), path[-1] if path else None)
            (path[-1].children if path else roots).append(node)
            path.append(node)
        path[-1].ends.append(i)
    for root in roots:
        _count(root)
    return roots


def first_fit_decreasing(roots: list[Node], token_budget: int) -> list[list[Node]]:
    """The nodes of each pack, parents before children."""
    items: list[list[Node]] = []
    for root in roots:
        items += _pieces(root, [], token_budget)
    sizes = [sum(node.size for node in item) for item in items]
    free: npt.NDArray[np.int64] = np.full(len(items), token_budget)
    bins: list[list[Node]] = [[] for _ in items]
    for k in sorted(range(len(items)), key=lambda k: -sizes[k]):
        fits = free >= sizes[k]
        fits[k] = fits[k] or not fits.any()  # an item over the budget gets its own bin
        at = int(fits.argmax())
        bins[at] += items[k]
        free[at] -= sizes[k]
    return [nodes for nodes in bins if nodes]


def _common_prefix(a: Ids, b: Ids) -> int:
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    at = int(differs.argmax()) if size else 0
    return at if size and differs[at] else size


def _split(node: Node, at: int, roots: list[Node]) -> Node:
    """Split a node in two at depth `at`; returns the upper node."""
    upper = Node(node.source, node.start, at, node.parent)
    siblings = node.parent.children if node.parent else roots
    siblings[-1] = upper  # the node was the last one added there
    upper.children.append(node)
    node.start, node.parent = at, upper
    return upper


def _count(root: Node) -> None:
    stack, seen = [root], []
    while stack:
        node = stack.pop()
        seen.append(node)
        stack += node.children
    for node in reversed(seen):
        node.total = node.size + sum(child.total for child in node.children)


def _unshared(sequences: Sequence[Ids]) -> list[Node]:
    roots = [Node(i, 0, len(ids), None, total=len(ids)) for i, ids in enumerate(sequences)]
    for i, root in enumerate(roots):
        root.ends.append(i)
    return roots


def _subtree(node: Node) -> list[Node]:
    nodes, stack = [], [node]
    while stack:
        nodes.append(stack.pop())
        stack += reversed(nodes[-1].children)
    return nodes


def _pieces(node: Node, ancestors: list[Node], token_budget: int) -> list[list[Node]]:
    """The subtree of a node, with its ancestors, in pieces that fit in the budget if possible."""
    if node.start + node.total <= token_budget or not node.children:
        return [ancestors + _subtree(node)]
    path = [*ancestors, node]
    pieces: list[list[Node]] = []
    current: list[Node] = []
    free = token_budget - node.stop
    for child in node.children:
        if child.total > token_budget - node.stop:
            pieces += _pieces(child, path, token_budget)
            continue
        if child.total > free:
            pieces.append(path + current)
            current, free = [], token_budget - node.stop
        current += _subtree(child)
        free -= child.total
    return [*pieces, path + current] if current else pieces


def _build(
    nodes: list[Node], sequences: Sequence[Ids], reads: Sequence[Sequence[int]], fixed_size: int
) -> Pack:
    ids, positions, keys = [], [], []
    offset_of: dict[int, int] = {}
    keys_of: dict[int, Index] = {}
    read: list[int] = []
    rows: list[Index] = []
    following: list[Ids] = []
    offset = 0
    for node in nodes:
        if id(node) in offset_of:
            continue  # an ancestor of two pieces of one tree that are both in this pack
        own = np.arange(offset, offset + node.size)
        offset_of[id(node)] = offset
        index = own if node.parent is None else np.concatenate((keys_of[id(node.parent)], own))
        keys_of[id(node)] = index
        ids.append(sequences[node.source][node.start : node.stop])
        positions.append(np.arange(node.start, node.stop))
        keys.append(index)
        offset += node.size
        for i in node.ends:
            read.append(i)
            at = np.asarray(reads[i], np.int64)
            rows.append(index[at])
            following.append(sequences[i].take(at + 1, mode="clip"))
        node.ends = []  # read once, even if the node is in other packs too
    for start in range(offset, fixed_size, FILLER_TOKENS):
        filler = np.arange(start, min(start + FILLER_TOKENS, fixed_size))
        ids.append(np.zeros(len(filler), np.int32))
        positions.append(filler - start)
        keys.append(filler)
    return Pack(
        input_ids=np.concatenate(ids).astype(np.int64),
        position_ids=np.concatenate(positions),
        cu_q=np.cumsum([0, *map(len, ids)]),
        cu_k=np.cumsum([0, *map(len, keys)]),
        kv_index=np.concatenate(keys),
        sequences=np.array(read, np.int64),
        read_index=np.concatenate([np.empty(0, np.int64), *rows]),
        cu_read=np.cumsum([0, *map(len, rows)]),
        targets=np.concatenate([np.empty(0, np.int64), *following]),
        num_tokens=offset,
    )
