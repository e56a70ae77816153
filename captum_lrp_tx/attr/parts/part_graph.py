"""Edges between the parts of a model: as a matrix, a table, a circuit, a graph and a picture."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import needed, pandas

if TYPE_CHECKING:
    import networkx  # type: ignore[import-untyped]
    import pandas as pd
    from matplotlib.figure import Figure

NodeKind = Literal["input", "embedding", "head", "attention", "mlp", "constants", "output"]


@dataclass(eq=False)
class PartNode:
    """A part that writes or reads.

    Attributes:
        name (str): ``a3.h5`` for a head, ``m3`` for an MLP, ``embedding``, ``output``, ``input``
            (or the tables that ids were looked up in), or which constants these are: ``constants of
            a3`` are what attention of layer 3 adds beside its heads, ``constants in a3`` what its
            heads keep of what they read, ``constants before a3`` those of a norm on the stream.
        kind (str): ``"input"``, ``"embedding"``, ``"head"``, ``"attention"`` (whose heads cannot be
            told), ``"mlp"``, ``"constants"`` or ``"output"``.
        layer (int, optional): Counted in the order of the forward pass.
        module (str): The module that makes the branch, the name of the table of an input.
        number (int, optional): Of the head.
        constants (dict): Of constants: what was absorbed, by name, summed over the batch.
        unexplained (float): Of constants: what went there and was absorbed by nothing that has a
            name, summed over the batch. It is zero, but for rounding, where the rules conserve.
    """

    name: str
    kind: NodeKind
    layer: int | None = None
    module: str = ""
    number: int | None = None
    constants: dict[str, float] = field(default_factory=dict)
    unexplained: float = 0.0


@dataclass(frozen=True, eq=False)
class PartGraph:
    """Edges from part to part.

    Attributes:
        nodes (list of PartNode): In the order of the forward pass: inputs first, the output last.
        edges (Tensor): From writer to reader, ``(batch, nodes, nodes)``: ``edges[b, i, j]`` is what
            ``nodes[j]`` reads of ``nodes[i]``.
        output (Tensor): The explained output, ``(batch,)``.
        measure (str): What the edges are: ``"relevance"`` or ``"effect"`` of patching.
    """

    nodes: list[PartNode]
    edges: Tensor
    output: Tensor
    measure: Literal["relevance", "effect"] = "relevance"

    @property
    def read(self) -> Tensor:
        """What every node reads, ``(batch, nodes)``; of the output it is the output."""
        return self.edges.sum(1)

    @property
    def written(self) -> Tensor:
        """What is read of every node, ``(batch, nodes)``; of relevance as much as it reads."""
        return self.edges.sum(2)

    @property
    def unexplained(self) -> float:
        """Magnitudes of what no node and no constant with a name took, summed over the batch."""
        return sum(abs(node.unexplained) for node in self.nodes)

    def index(self, name: str) -> int:
        """Where a node stands.

        Raises:
            InputError: there is no node of this name.
        """
        for i, node in enumerate(self.nodes):
            if node.name == name:
                return i
        raise InputError(f"There is no node {name!r}; nodes have names such as {self._some()}.")

    def edge(self, writer: str, reader: str) -> Tensor:
        """What one node reads of another, ``(batch,)``.

        Args:
            writer, reader (str): Names of nodes.

        Raises:
            InputError: there is no node of this name.

        Example::

            >>> found.edge("a0.h3", "m1")
        """
        return self.edges[:, self.index(writer), self.index(reader)]

    def table(self) -> pd.DataFrame:
        """One row for each edge and example.

        Returns:
            pandas.DataFrame: Columns ``writer``, ``reader``, ``example`` and ``relevance`` (or
            ``effect``).

        Raises:
            MissingPackageError: pandas is not installed.

        Example::

            >>> found.table().nlargest(5, "relevance")
        """
        rows = [
            {"writer": writer.name, "reader": reader.name, "example": b, self.measure: value}
            for b in range(len(self.edges))
            for writer, reader, value in self._each(self.edges[b])
        ]
        frame: pd.DataFrame = pandas().DataFrame(
            rows, columns=["writer", "reader", "example", self.measure]
        )
        return frame

    def circuit(
        self, share: float = 0.5, *, edges: int | None = None, constants: bool = True
    ) -> PartGraph:
        r"""The strongest edges, grown from the output down.

        Of all edges to nodes that are in the circuit the one of the largest magnitude (of the mean
        over examples) is added, and its writer, until the circuit holds a share of the magnitudes
        of all edges, :math:`\sum_{kept} |e| \ge share \sum |e|`.  So every node of the circuit is
        read on some way that ends at the output.

        Source: the greedy search of Hanna et al., "Have Faith in Faithfulness: Going Beyond Circuit
        Overlap When Finding Model Mechanisms", COLM 2024.

        Args:
            share (float): Between 0 and 1.
            edges (int, optional): So many edges instead of a share.
            constants (bool): Whether edges from constants are edges as others are; else they are
                left out of the circuit and of what its share is of.

        Returns:
            PartGraph: The nodes that have edges, all edges that are left out being 0.

        Raises:
            InputError: a share that is not between 0 and 1, or a number of edges below 1.

        Example::

            >>> found.circuit(0.9).to_networkx()
        """
        if not 0 < share <= 1 or (edges is not None and edges < 1):
            raise InputError("share must be above 0 and at most 1, edges at least 1.")
        size = self.edges.mean(0).abs()
        if not constants:
            size = size.clone()
            size[[i for i, node in enumerate(self.nodes) if node.kind == "constants"]] = 0
        kept = _grown(size, len(self.nodes) - 1, share, edges)
        mask = torch.zeros_like(size, dtype=torch.bool)
        mask[tuple(zip(*kept, strict=True))] = True
        stay = sorted({i for edge in kept for i in edge})
        matrix = (self.edges * mask)[:, stay][:, :, stay]
        return replace(self, nodes=[self.nodes[i] for i in stay], edges=matrix)

    def to_networkx(self, example: int | None = None) -> networkx.DiGraph:
        """As a graph of networkx, from writers to readers.

        Args:
            example (int, optional): Which example; the mean over all unless given.

        Returns:
            networkx.DiGraph: Edges have ``weight``; nodes go by their names and have the
            attributes of :class:`PartNode`, ``unexplained`` among them.

        Raises:
            MissingPackageError: networkx is not installed.

        Example::

            >>> graph = found.circuit(0.5).to_networkx()
            >>> graph.in_degree("output", weight="weight")
        """
        nx = needed("networkx", "graphs need networkx", "pip install networkx")
        graph = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(
                node.name, kind=node.kind, layer=node.layer, module=node.module,
                number=node.number, constants=dict(node.constants), unexplained=node.unexplained,
            )  # fmt: skip
        for writer, reader, value in self._each(self._of(example)):
            graph.add_edge(writer.name, reader.name, weight=value)
        return graph

    def figure(self, example: int | None = None, *, title: str = "", width: float = 6.5) -> Figure:
        """A picture of a circuit: layers upwards, heads side by side, lines as wide as edges.

        Args:
            example (int, optional): Which example; the mean over all unless given.
            title (str): Headline.
            width (float): In inches.

        Returns:
            matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

        Raises:
            ImportError: matplotlib is not installed.

        Example::

            >>> found.circuit(edges=40).figure().savefig("circuit.png", dpi=200)
        """
        from captum_lrp_tx.visualization.circuits import Drawn, circuit_figure

        places = {node.name: i for i, node in enumerate(self.nodes)}
        return circuit_figure(
            [Drawn(node.name, node.kind, node.layer, node.number) for node in self.nodes],
            [(places[writer.name], places[reader.name], value)
             for writer, reader, value in self._each(self._of(example))],
            title=title, width=width,
        )  # fmt: skip

    def _of(self, example: int | None) -> Tensor:
        return self.edges.mean(0) if example is None else self.edges[example]

    def _each(self, matrix: Tensor) -> Iterator[tuple[PartNode, PartNode, float]]:
        """Edges that are not zero."""
        for i, j in matrix.nonzero().tolist():
            yield self.nodes[i], self.nodes[j], float(matrix[i, j])

    def _some(self) -> str:
        names = [node.name for node in self.nodes if node.kind != "constants"]
        return ", ".join([*names[:4], names[-1]])


def _grown(size: Tensor, output: int, share: float, count: int | None) -> list[tuple[int, int]]:
    """Edges of a circuit, as places of writer and reader."""
    wanted, held = share * float(size.sum()), 0.0
    columns = size.T.tolist()
    ahead: list[tuple[float, int, int]] = []
    reached: set[int] = set()
    kept: list[tuple[int, int]] = []

    def reach(reader: int) -> None:
        if reader not in reached:
            reached.add(reader)
            for writer, value in enumerate(columns[reader]):
                if value:
                    heapq.heappush(ahead, (-value, writer, reader))

    reach(output)
    while ahead and (held < wanted if count is None else len(kept) < count):
        value, writer, reader = heapq.heappop(ahead)
        kept.append((writer, reader))
        held -= value
        reach(writer)
    return kept
