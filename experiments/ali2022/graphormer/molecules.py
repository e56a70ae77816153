"""Molecules as graphs: what Graphormer's three encodings are computed from.

A molecule becomes a sequence of its heavy atoms with a virtual node ("VNode") in front, which is
connected to all of them and read out, as [CLS] is in BERT.  N atoms make T = N + 1 tokens.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy.sparse.csgraph import shortest_path  # type: ignore[import-untyped]
from torch import Tensor

#: Atom ids: atomic numbers, and three of our own.
PADDING, VNODE, MASK = 0, 119, 120
ATOM_IDS = 121

#: Further features of an atom, each with an embedding table of its own; 0 is "not known".
FEATURES: dict[str, tuple[Any, ...]] = {
    "charge": (-1, 0, 1),
    "hydrogens": (0, 1, 2, 3, 4),
    "hybridization": tuple(
        getattr(Chem.HybridizationType, name) for name in ("SP", "SP2", "SP3", "SP3D", "SP3D2")
    ),
    "aromatic": (False, True),
    "in a ring": (False, True),
    "chirality": ("", "R", "S"),  # clockwise or not would depend on the order of the atoms
}
#: Rows of each table: "not known", the values above, and "anything else".
FEATURE_SIZES = tuple(len(values) + 2 for values in FEATURES.values())

MAX_DEGREE = 6  # more neighbours count as so many; ids are degree + 1, 0 is "not known"
MAX_DISTANCE = 20  # longer ones count as so long
UNREACHABLE, VIRTUAL = MAX_DISTANCE + 1, MAX_DISTANCE + 2
DISTANCE_IDS = MAX_DISTANCE + 3

BONDS = (
    Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC,
)  # fmt: skip
MAX_HOPS = 5  # bonds of a shortest path that the edge encoding looks at


@dataclass(frozen=True)
class Graphs:
    """Molecules as the model takes them: one, or a batch padded to T tokens.

    Attributes:
        atoms (Tensor): Atom ids, shape ``(batch, T)``, int64; token 0 is the virtual node.
        features (Tensor): Ids of :data:`FEATURES`, shape ``(batch, T, 6)``, int64.
        degrees (Tensor): Number of neighbours plus one, shape ``(batch, T)``, int64.
        distances (Tensor): Ids of shortest-path distances, shape ``(batch, T, T)``, int64.
        paths (Tensor): Bonds along the shortest paths, see :func:`path_features`, shape
            ``(batch, T, T, hops, bonds)``, float32.
        attention_mask (Tensor): True where there is no padding, shape ``(batch, T)``, bool.
    """

    atoms: Tensor
    features: Tensor
    degrees: Tensor
    distances: Tensor
    paths: Tensor
    attention_mask: Tensor

    @property
    def structure(self) -> tuple[Tensor, ...]:
        """All but the atom ids, in the order of the model's arguments."""
        return (self.features, self.degrees, self.distances, self.paths, self.attention_mask)

    def __len__(self) -> int:
        return self.atoms.shape[0]

    def __getitem__(self, index: int) -> Graphs:
        """One molecule, as a batch of one without padding."""
        size = int(self.attention_mask[index].nonzero().max()) + 1
        one = slice(index, index + 1)
        return Graphs(
            self.atoms[one, :size], self.features[one, :size], self.degrees[one, :size],
            self.distances[one, :size, :size], self.paths[one, :size, :size],
            self.attention_mask[one, :size],
        )  # fmt: skip

    def masked(self, hidden: Tensor) -> Graphs:
        """The graphs with nothing known of some atoms.

        Type, features and degree of a hidden atom are unknown; bonds and distances stay, as the
        positions of masked words do in a text.

        Args:
            hidden (Tensor): Which tokens, shape ``(batch, T)``, bool; virtual nodes stay as they
                are.
        """
        hidden = hidden & (self.atoms != VNODE) & self.attention_mask
        return replace(
            self,
            atoms=self.atoms.masked_fill(hidden, MASK),
            features=self.features.masked_fill(hidden[..., None], 0),
            degrees=self.degrees.masked_fill(hidden, 0),
        )

    def removed(self, hidden: Tensor) -> Graphs:
        """The graphs without some atoms: no token attends to them. Arguments as for `masked`."""
        hidden = hidden & (self.atoms != VNODE)
        return replace(self.masked(hidden), attention_mask=self.attention_mask & ~hidden)


def parse(smiles: str) -> Chem.Mol:
    """A molecule without explicit hydrogens.

    Raises:
        ValueError: Not a SMILES string that RDKit understands.
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise ValueError(f"{smiles!r} is no SMILES string of a molecule")
    return molecule


def graph_of(molecule: Chem.Mol | str) -> Graphs:
    """A molecule as a batch of one.

    Args:
        molecule (Chem.Mol or str): RDKit's, or a SMILES string.

    Example::

        >>> graph_of("CCO").atoms
        tensor([[119,   6,   6,   8]])
    """
    if isinstance(molecule, str):
        molecule = parse(molecule)
    atoms = list(molecule.GetAtoms())
    count = len(atoms) + 1
    bonds = bond_matrix(molecule)
    distances = shortest_distances(bonds >= 0)
    ids = torch.full((count, count), VIRTUAL)
    ids[1:, 1:] = torch.from_numpy(np.where(distances < 0, UNREACHABLE, distances))
    ids[1:, 1:].clamp_(max=UNREACHABLE)
    long = (distances > MAX_DISTANCE).nonzero()
    ids[1:, 1:][torch.from_numpy(long[0]), torch.from_numpy(long[1])] = MAX_DISTANCE
    paths = torch.zeros(count, count, MAX_HOPS, len(BONDS))
    paths[1:, 1:] = torch.from_numpy(path_features(bonds, distances))
    degrees = torch.tensor([0, *(min(a.GetDegree(), MAX_DEGREE) + 1 for a in atoms)])
    features = torch.zeros(count, len(FEATURES), dtype=torch.long)
    features[1:] = torch.tensor([_features(atom) for atom in atoms])
    return Graphs(
        torch.tensor([[VNODE, *(min(a.GetAtomicNum(), 118) for a in atoms)]]),
        features[None], degrees[None], ids[None], paths[None],
        torch.ones(1, count, dtype=torch.bool),
    )  # fmt: skip


def _features(atom: Chem.Atom) -> list[int]:
    found = (
        atom.GetFormalCharge(), atom.GetTotalNumHs(), atom.GetHybridization(),
        atom.GetIsAromatic(), atom.IsInRing(),
        atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else "",
    )  # fmt: skip
    return [
        values.index(value) + 1 if value in values else len(values) + 1
        for value, values in zip(found, FEATURES.values(), strict=True)
    ]


def bond_matrix(molecule: Chem.Mol) -> NDArray[np.int64]:
    """Type of the bond between any two atoms as an index of :data:`BONDS`, -1 for none.

    Other types (dative bonds) count as single. Shape ``(N, N)``.
    """
    matrix = np.full((molecule.GetNumAtoms(),) * 2, -1)
    for bond in molecule.GetBonds():
        kind = BONDS.index(bond.GetBondType()) if bond.GetBondType() in BONDS else 0
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        matrix[i, j] = matrix[j, i] = kind
    return matrix


def shortest_distances(adjacent: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Bonds between any two atoms, -1 where there is no way; shape ``(N, N)``."""
    found = shortest_path(adjacent, unweighted=True, directed=False)
    return np.where(np.isinf(found), -1, found).astype(np.int64)


def path_features(bonds: NDArray[np.int64], distances: NDArray[np.int64]) -> NDArray[np.float32]:
    r"""What the edge encoding is linear in: one-hot bond types along the shortest path.

    Entry ``(i, j, n, b)`` is :math:`1 / \min(d_{ij}, \mathrm{hops})` if bond n of the way from i to
    j has type b, so that the encoding of Ying et al., eq. 7, is its product with the
    weights. Where several ways are shortest the mean over all of them is taken (the paper takes any
    one, which would make the model depend on how the atoms are numbered). With
    :math:`\sigma_{ij}` shortest ways from i to j, the bond u-v is on
    :math:`\sigma_{iu} \sigma_{vj}` of them.

    Args:
        bonds (array): Of :func:`bond_matrix`, shape ``(N, N)``.
        distances (array): Of :func:`shortest_distances`, shape ``(N, N)``.

    Returns:
        array: shape ``(N, N, hops, bonds)``, float32.
    """
    count = len(bonds)
    ways = np.eye(count)
    for length in range(1, int(distances.max(initial=0)) + 1):
        # the last bond of a shortest way comes from an atom that is one nearer
        reached = np.where(distances == length - 1, ways, 0.0) @ (bonds >= 0)
        ways = np.where(distances == length, reached, ways)
    features = np.zeros((count, count, MAX_HOPS, len(BONDS)))
    for u, v in zip(*np.nonzero(bonds >= 0), strict=True):
        hop = distances[:, u, None]  # bonds before this one
        on_way = (hop >= 0) & (distances[None, v] >= 0)
        on_way = on_way & (hop + 1 + distances[None, v] == distances)
        i, j = np.nonzero(on_way & (hop < MAX_HOPS))
        share = ways[i, u] * ways[v, j] / ways[i, j] / np.minimum(distances[i, j], MAX_HOPS)
        features[i, j, distances[i, u], bonds[u, v]] += share
    return features.astype(np.float32)


def collate(graphs: Sequence[Graphs]) -> Graphs:
    """Several graphs as one batch, padded to the largest."""
    size = max(g.atoms.shape[1] for g in graphs)
    count = sum(map(len, graphs))
    first = graphs[0]

    def padded(name: str, square: bool) -> Tensor:
        values: list[Tensor] = [getattr(g, name) for g in graphs]
        shape = (count, size, size) if square else (count, size)
        skip = 3 if square else 2
        whole: Tensor = getattr(first, name).new_zeros(*shape, *values[0].shape[skip:])
        row = 0
        for value in values:
            rows, tokens = slice(row, row + len(value)), slice(value.shape[1])
            if square:
                whole[rows, tokens, tokens] = value
            else:
                whole[rows, tokens] = value
            row += len(value)
        return whole

    return Graphs(
        padded("atoms", False), padded("features", False), padded("degrees", False),
        padded("distances", True), padded("paths", True), padded("attention_mask", False),
    )  # fmt: skip


# ---- data sets ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Example:
    """A labelled molecule: its SMILES string, class 0 or 1, and graph."""

    smiles: str
    label: int
    graph: Graphs


def read_csv(path: Path) -> list[Example]:
    """Molecules of a file with the columns ``smiles`` and ``label``.

    Raises:
        ValueError: A column is missing, or a line cannot be understood.
    """
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"smiles", "label"} <= rows[0].keys():
        raise ValueError(f"{path} needs a first line with the columns smiles and label")
    return examples((row["smiles"], int(row["label"])) for row in rows)


def examples(labelled: Iterable[tuple[str, int]]) -> list[Example]:
    """Pairs of SMILES string and class with their graphs."""
    return [Example(smiles, label, graph_of(smiles)) for smiles, label in labelled]


def scaffold_of(smiles: str) -> str:
    """The Bemis-Murcko scaffold without chirality: rings and what links them."""
    make: Any = MurckoScaffold.MurckoScaffoldSmiles
    return str(make(mol=parse(smiles), includeChirality=False))


def scaffold_split(
    smiles: Sequence[str], train: float = 0.8, valid: float = 0.1
) -> tuple[list[int], list[int], list[int]]:
    """Positions for training, validation and test, no scaffold in two of them.

    As in MoleculeNet (Wu et al. 2018): molecules are grouped by their Bemis-Murcko scaffold
    (without chirality); the groups, largest first, fill the training set, then the validation
    set, and the rest is the test set.

    Args:
        smiles (sequence of str): The molecules.
        train (float), valid (float): Shares.
    """
    groups: dict[str, list[int]] = {}
    for position, text in enumerate(smiles):
        scaffold = scaffold_of(text)
        groups.setdefault(scaffold, []).append(position)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in sorted(groups.values(), key=lambda g: (len(g), g[0]), reverse=True):
        if len(parts[0]) + len(group) <= train * len(smiles):
            parts[0].extend(group)
        elif sum(map(len, parts[:2])) + len(group) <= (train + valid) * len(smiles):
            parts[1].extend(group)
        else:
            parts[2].extend(group)
    return parts
