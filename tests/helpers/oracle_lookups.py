"""What the oracle takes for lookups of token ids, and which id each row belongs to.

Found without following anything: every id is changed in turn, and the places of an index that
change with it are its own.  Rows of other tables (positions, segments) belong to the tokens whose
rows they are added to, place by place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

Origins = Callable[[fx.Node], set[fx.Node]]


def owners_of(
    root: Any, graph: fx.Graph, embeddings: Sequence[fx.Node], ids: Tensor
) -> dict[fx.Node, Tensor]:
    """For each lookup whose index depends on the ids: the flat place of the id of each row.

    -1 stands for rows that no single id decides on.
    """
    indices = [node.args[1] for node in embeddings]
    wanted = {i for i in indices if isinstance(i, fx.Node)}
    needed: set[fx.Node] = set()
    todo = list(wanted)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    # what is written into views of what is needed is needed, too
    nodes = list(graph.nodes)
    kept = set(needed)
    for node in nodes[: max((nodes.index(n) for n in wanted), default=-1) + 1]:
        if node not in embeddings and set(node.all_input_nodes) & kept:
            kept.add(node)

    def run(given: Tensor) -> dict[fx.Node, Tensor]:
        interpreter = fx.Interpreter(root, graph=graph)
        found: dict[fx.Node, Tensor] = {}
        interpreter.args_iter = iter([given.clone()])
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr") or node in kept:
                try:
                    value = interpreter.run_node(node)
                except Exception:
                    if node in needed:
                        raise
                    continue  # works on what is not needed
                interpreter.env[node] = value
                if node in wanted:
                    found[node] = value
        return {node: value.clone() for node, value in found.items()}  # written to meanwhile

    with torch.no_grad():
        before = run(ids)
        owners = {n: torch.full(v.shape, -1) for n, v in before.items()}
        shared = {n: torch.zeros(v.shape, dtype=torch.bool) for n, v in before.items()}
        for place in range(ids.numel()):
            other = ids.flatten().clone()
            other[place] += 1 if other[place] < ids.max() else -1  # no special token
            for node, value in run(other.view(ids.shape)).items():
                changed = value != before[node]
                shared[node] |= changed & (owners[node] >= 0)
                owners[node][changed] = place
    result = {}
    for node, index in zip(embeddings, indices, strict=True):
        if index in owners and bool((owners[index] >= 0).any()):
            result[node] = owners[index].masked_fill(shared[index], -1)
    return result


def added_to(
    graph: fx.Graph, owners: dict[fx.Node, Tensor], others: Sequence[fx.Node], origins: Origins
) -> dict[fx.Node, Tensor]:
    """For each other lookup that is added to rows of ids: the owners of these rows."""
    found: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if not str(node.target).startswith(("aten.add.", "aten.add_.")):
            continue
        sources = origins(node)
        words = [n for n in sources if n in owners]
        if words and sources <= {*owners, *others}:
            for other in sources & set(others):
                if _places(other) in (owners[words[0]].numel(), owners[words[0]].shape[-1]):
                    found.setdefault(other, owners[words[0]])
    return found


def _places(lookup: fx.Node) -> int:
    """How many rows a lookup reads, as the trace saw it."""
    return int(lookup.meta.get("rows", -1))


def by_id(rows: Tensor, owners: Tensor, ids: Tensor) -> Tensor:
    """Relevance of rows, added up for the ids that own them."""
    total = rows.new_zeros(ids.numel() + 1)
    places = owners.reshape(-1) if owners.numel() == rows.numel() else owners.expand(rows.shape)
    return total.index_add(0, places.reshape(-1) + 1, rows.reshape(-1))[1:].view(ids.shape)
