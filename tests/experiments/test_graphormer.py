"""The molecule experiment: encodings by brute force, relevance by oracle, curves by a loop."""

from __future__ import annotations

import csv
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle

pytest.importorskip("rdkit", reason="needs rdkit (extra 'graph')")
pytest.importorskip("scipy", reason="needs scipy (extra 'graph')")
pytest.importorskip("safetensors", reason="needs safetensors (extra 'graph')")
networkx = pytest.importorskip("networkx", reason="needs networkx (extra 'test')")

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "experiments/ali2022/graphormer").is_dir():
    pytest.skip("needs the experiments beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from rdkit import Chem  # noqa: E402
from rdkit.Chem.Scaffolds import MurckoScaffold  # noqa: E402

from captum_lrp_tx import ConservativeGI, ConservativeLRP, audit  # noqa: E402
from captum_lrp_tx.methods import find_method  # noqa: E402
from captum_lrp_tx.metrics.batches import Batch  # noqa: E402
from captum_lrp_tx.metrics.curves import activation_curve, pruning_curve  # noqa: E402
from experiments.ali2022.graphormer import molecules as mols  # noqa: E402
from experiments.ali2022.graphormer.__main__ import RESULTS, WEIGHTS, main  # noqa: E402
from experiments.ali2022.graphormer.drugs import DRUGS  # noqa: E402
from experiments.ali2022.graphormer.evaluate import HOW, HideAtoms  # noqa: E402
from experiments.ali2022.graphormer.explain import ALL, embed, method_of, relevance_of  # noqa: E402
from experiments.ali2022.graphormer.model import (  # noqa: E402
    Config,
    FromEmbeddings,
    Graphormer,
    load,
    save,
)
from experiments.ali2022.graphormer.train import logits, roc_auc  # noqa: E402

SMILES = {name: smiles for name, smiles, _ in DRUGS}
#: Rings with several shortest ways, a cage, two parts that are not connected, a single atom.
TRICKY = {
    "caffeine": SMILES["caffeine"],
    "morphine": SMILES["morphine"],
    "cubane": "C12C3C4C1C5C2C3C45",
    "memantine": SMILES["memantine"],
    "salt": "C[NH2+]CC=O.[Cl-]",
    "methane": "C",
    "long": "C" * 26 + "#N",
}
tricky = pytest.mark.parametrize("smiles", TRICKY.values(), ids=TRICKY.keys())


@pytest.fixture(scope="module")
def model() -> Graphormer:
    """Weights far from their start, so that every encoding matters."""
    torch.manual_seed(0)
    made = Graphormer(Config(width=32, heads=4, layers=3, hidden=48)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def graphs() -> list[mols.Graphs]:
    return [mols.graph_of(smiles) for smiles in TRICKY.values()]


def as_networkx(molecule: Chem.Mol) -> Any:
    graph = networkx.Graph()
    graph.add_nodes_from(range(molecule.GetNumAtoms()))
    for bond in molecule.GetBonds():
        kind = mols.BONDS.index(bond.GetBondType())
        graph.add_edge(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), kind=kind)
    return graph


# ---- encodings ----------------------------------------------------------------------------------
@tricky
def test_centrality_and_distances_equal_floyd_warshall(smiles: str) -> None:
    molecule = mols.parse(smiles)
    known = as_networkx(molecule)
    graph = mols.graph_of(molecule)
    lengths = networkx.floyd_warshall_numpy(known)
    count = molecule.GetNumAtoms()
    assert graph.degrees[0].tolist() == [0, *(known.degree[i] + 1 for i in range(count))]
    for i in range(count):
        for j in range(count):
            length = lengths[i, j]
            expected = (
                mols.UNREACHABLE if length == float("inf") else min(int(length), mols.MAX_DISTANCE)
            )
            assert graph.distances[0, i + 1, j + 1] == expected
    assert bool((graph.distances[0, 0] == mols.VIRTUAL).all())
    assert bool((graph.distances[0, :, 0] == mols.VIRTUAL).all())


@tricky
def test_edge_encoding_is_the_mean_over_all_shortest_ways(smiles: str) -> None:
    molecule = mols.parse(smiles)
    known = as_networkx(molecule)
    count = molecule.GetNumAtoms()
    expected = torch.zeros(count + 1, count + 1, mols.MAX_HOPS, len(mols.BONDS))
    for i in range(count):
        for j in range(count):
            if i == j or not networkx.has_path(known, i, j):
                continue
            ways = list(networkx.all_shortest_paths(known, i, j))
            for way in ways:
                bonds = list(pairwise(way))[: mols.MAX_HOPS]
                for hop, (u, v) in enumerate(bonds):
                    share = 1 / len(ways) / len(bonds)
                    expected[i + 1, j + 1, hop, known.edges[u, v]["kind"]] += share
    torch.testing.assert_close(mols.graph_of(molecule).paths[0], expected, rtol=0, atol=1e-6)


def test_attention_bias_equals_the_equations(model: Graphormer) -> None:
    """Eq. 6 and 7 written out for one way between any two atoms of a chain."""
    molecule = mols.parse("CC(=O)NCC#N")
    graph = mols.graph_of(molecule)
    bias = model.attention_bias(graph.distances, graph.paths, graph.attention_mask)[0]
    known = as_networkx(molecule)
    weight = model.path.weight.reshape(-1, mols.MAX_HOPS, len(mols.BONDS))
    for i in range(len(known)):
        for j in range(len(known)):
            way = networkx.shortest_path(known, i, j)
            expected = model.distance.weight[len(way) - 1].clone()
            bonds = list(pairwise(way))[: mols.MAX_HOPS]
            for hop, (u, v) in enumerate(bonds):
                expected += weight[:, hop, known.edges[u, v]["kind"]] / len(bonds)
            torch.testing.assert_close(bias[:, i + 1, j + 1], expected, rtol=1e-5, atol=1e-6)


def test_masked_and_removed_atoms_tell_nothing_of_themselves(model: Graphormer) -> None:
    first, second = mols.graph_of("CCOC(F)C"), mols.graph_of("CCNC(Cl)=C")
    hidden = torch.tensor([[False, False, False, True, True, True, True]])
    for how in ("masked", "removed"):
        one, other = (getattr(g, how)(hidden) for g in (first, second))
        assert torch.equal(one.atoms, other.atoms)
        assert torch.equal(one.features[:, 3:], other.features[:, 3:])
        assert one.atoms[0, 0] == mols.VNODE
    whole = first.removed(torch.zeros_like(hidden))
    assert torch.equal(model(whole.atoms, *whole.structure), model(first.atoms, *first.structure))
    # a removed atom is like no atom: the model gives what it gives for the rest with its distances
    short = mols.Graphs(
        first.atoms[:, :3], first.features[:, :3], first.degrees[:, :3],
        first.distances[:, :3, :3], first.paths[:, :3, :3], first.attention_mask[:, :3],
    )  # fmt: skip
    left = first.removed(hidden)
    torch.testing.assert_close(
        model(left.atoms, *left.structure), model(short.atoms, *short.structure)
    )


# ---- relevance ----------------------------------------------------------------------------------
def renumbered(smiles: str) -> tuple[Chem.Mol, Chem.Mol, Tensor]:
    molecule = mols.parse(smiles)
    order = torch.randperm(molecule.GetNumAtoms())
    return molecule, Chem.RenumberAtoms(molecule, order.tolist()), order


@pytest.mark.parametrize("name", ["GI", "LRP(AH+LN)", "LRP", "Rollout", "GAE", "IG"])
@pytest.mark.parametrize("drug", ["morphine", "sertraline", "memantine"])
def test_relevance_does_not_depend_on_the_numbers_of_atoms(
    model: Graphormer, drug: str, name: str
) -> None:
    before, after, order = renumbered(SMILES[drug])
    assert order.tolist() != sorted(order.tolist())
    target, method = torch.tensor([1]), find_method(name)
    one = relevance_of(model, method, mols.graph_of(before), target)[0]
    other = relevance_of(model, method, mols.graph_of(after), target)[0]
    scale = float(one.abs().max())
    assert scale > 0
    torch.testing.assert_close(one[1:][order], other[1:], rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(one[0], other[0], rtol=1e-3, atol=1e-4 * scale)


def test_a_padded_batch_is_its_molecules(model: Graphormer, graphs: list[mols.Graphs]) -> None:
    batch = mols.collate(graphs)
    whole = model(batch.atoms, *batch.structure)
    targets = torch.arange(len(graphs)) % 2
    for name in ("GI", "LRP", "AttnLRP", "A-Last", "GAE", "IG"):
        method = find_method(name)
        together = relevance_of(model, method, batch, targets)
        for i, graph in enumerate(graphs):
            tokens = graph.atoms.shape[1]
            assert torch.equal(batch[i].paths, graph.paths)
            torch.testing.assert_close(whole[i], model(graph.atoms, *graph.structure)[0])
            alone = relevance_of(model, method, graph, targets[i : i + 1])[0]
            scale = float(together.abs().max())
            torch.testing.assert_close(together[i, :tokens], alone, rtol=1e-3, atol=1e-5 * scale)
            assert not bool(together[i, tokens:].any())


@tricky
def test_everything_is_covered_and_relevance_conserved(model: Graphormer, smiles: str) -> None:
    graph = mols.graph_of(smiles)
    output = float(model(graph.atoms, *graph.structure)[0, 1].detach())
    report = audit.explainability(model, graph.atoms, 1, graph.structure, file=None, strict=True)
    assert report.is_covered and not report.findings
    assert report.output == pytest.approx(output)
    assert abs(report.conservation_error) < 1e-5
    assert all(abs(layer.error) < 1e-5 for layer in report.layers)
    assert {rule.kind for rule in report.applied} == {"attention", "norm", "activation", "linear"}
    # with shared-out biases the atoms alone account for the logit
    found = ConservativeLRP(model, bias="distribute").attribute(graph.atoms, 1, graph.structure)
    assert isinstance(found, Tensor)
    assert float(found.sum()) == pytest.approx(output, abs=1e-4)


def test_each_feature_table_counts(model: Graphormer) -> None:
    graph = mols.graph_of(SMILES["captopril"])
    explainer = ConservativeLRP(model)
    parts = explainer.attribute(graph.atoms, 1, graph.structure, positions="separate")
    names = ["atom", *(f"features.{i}" for i in range(len(mols.FEATURES))), "degree"]
    assert sorted(parts) == sorted(names)
    assert all(bool(part.any()) for part in parts.values())
    structure = (graph.distances, graph.paths, graph.attention_mask)
    embedded = embed(model, graph).detach()
    on_floats = ConservativeLRP(FromEmbeddings(model)).attribute(embedded, 1, structure)
    assert isinstance(on_floats, Tensor)
    total = torch.stack([*parts.values()]).sum(0)
    torch.testing.assert_close(total, on_floats.sum(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rules", oracle.RULES)
def test_relevance_equals_oracle(
    model: Graphormer, graphs: list[mols.Graphs], rules: oracle.Rules
) -> None:
    batch = mols.collate(graphs[:3])

    def function(ids: Tensor) -> Tensor:
        return model(ids, *batch.structure)

    def select(output: Tensor) -> Tensor:
        return output[:, 1]

    expected = oracle.oracle_token_relevance(function, batch.atoms, rules, select, double=True)
    found = ConservativeGI(model, rules=rules).attribute(batch.atoms, 1, batch.structure)
    assert isinstance(found, Tensor)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * scale)


def test_bonds_and_distances_get_no_relevance_but_matter(model: Graphormer) -> None:
    """The encodings act through the constant pattern: other bonds, other logit, same accounting."""
    graph = mols.graph_of(SMILES["aspirin"])
    other = mols.Graphs(
        graph.atoms, graph.features, graph.degrees, graph.distances,
        torch.zeros_like(graph.paths), graph.attention_mask,
    )  # fmt: skip
    logit, changed = (model(g.atoms, *g.structure)[0, 1].detach() for g in (graph, other))
    assert abs(float(logit - changed)) > 1e-3
    report = audit.explainability(model, graph.atoms, 1, graph.structure, file=None)
    assert not [name for name in report.absorbed if "distance" in name or "path" in name]


@pytest.mark.parametrize("name", ALL)
def test_every_method_gives_one_number_for_each_atom(model: Graphormer, name: str) -> None:
    graph = mols.graph_of(SMILES["nicotine"])
    found = relevance_of(model, method_of(name), graph, torch.tensor([0]))
    assert found.shape == graph.atoms.shape
    assert bool(found[0, 1:].isfinite().all()) and bool(found[0, 1:].any())


# ---- curves -------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["masked", "removed"])
@torch.no_grad()
def test_curves_equal_a_plain_loop(model: Graphormer, how: Any) -> None:
    smiles = SMILES["caffeine"]
    graph = mols.graph_of(smiles)
    relevance = torch.randn(graph.atoms.shape)
    arguments = (graph.atoms, relevance, 1, graph.structure)
    atoms = graph.atoms.shape[1] - 1

    def without(hidden: list[int]) -> Tensor:
        mask = torch.zeros_like(graph.atoms, dtype=torch.bool)
        mask[0, [i + 1 for i in hidden]] = True
        left = getattr(graph, how)(mask)
        return model(left.atoms, *left.structure)[0]

    appear = sorted(range(atoms), key=lambda i: -float(relevance[0, i + 1]))
    curve = activation_curve(model, *arguments, masker=HideAtoms(how), fractions="all")
    for step in range(atoms + 1):
        expected = without(appear[step:]).softmax(0)[1]
        assert float(curve.values[0, step]) == pytest.approx(float(expected), abs=1e-5)
    vanish = sorted(range(atoms), key=lambda i: abs(float(relevance[0, i + 1])))
    curve = pruning_curve(model, *arguments, masker=HideAtoms(how), fractions="all")
    for step in range(atoms + 1):
        expected = (without(vanish[:step]) - without([])).square().sum()
        assert float(curve.values[0, step]) == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
def test_frozen_attention_is_that_of_the_whole_molecule(model: Graphormer) -> None:
    """A block written out, with queries and keys of the whole and values of what is left."""
    one = Graphormer(Config(width=32, heads=4, layers=1, hidden=48)).eval()
    graph = mols.graph_of(SMILES["aspirin"])
    batch = Batch.of(graph.atoms, graph.structure)
    masker = HideAtoms("frozen")
    nothing = torch.zeros_like(graph.atoms, dtype=torch.bool)
    torch.testing.assert_close(
        masker.run(model, batch, nothing), model(graph.atoms, *graph.structure)
    )
    hidden = nothing.clone()
    hidden[0, 3:9] = True
    masked = graph.masked(hidden)
    block = one.blocks[0]
    whole, left = (block.attention_norm(embed(one, g)) for g in (graph, masked))
    query, key, _ = block.attention.project(whole)[0].chunk(3, -1)
    value = block.attention.project(left)[0].chunk(3, -1)[2]
    bias = one.attention_bias(graph.distances, graph.paths, graph.attention_mask)[0]
    mixed = []
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        pattern = (query[0, own] @ key[:, own].T / 8**0.5 + bias[head, 0]).softmax(-1)
        mixed.append(pattern @ value[:, own])
    x = embed(one, masked)[0, 0] + block.attention.output(torch.cat(mixed))
    x = x + block.contract(torch.nn.functional.gelu(block.expand(block.feed_forward_norm(x))))
    torch.testing.assert_close(masker.run(one, batch, hidden)[0], one.classify(one.norm(x)))


# ---- data, training, the whole run --------------------------------------------------------------
def test_no_scaffold_is_in_two_parts_of_the_split() -> None:
    smiles = [*SMILES.values()]
    parts = mols.scaffold_split(smiles, 0.6, 0.2)
    assert sorted(i for part in parts for i in part) == list(range(len(smiles)))
    assert 0 < len(parts[0]) <= 0.6 * len(smiles)
    assert len(parts[0]) + len(parts[1]) <= 0.8 * len(smiles)
    scaffolds = [{MurckoScaffold.MurckoScaffoldSmiles(smiles[i]) for i in part} for part in parts]
    assert not any(one & other for one, other in combinations(scaffolds, 2))


def test_roc_auc_counts_pairs() -> None:
    from scipy.stats import mannwhitneyu

    scores, labels = torch.randint(0, 9, (60,)).float(), torch.randint(0, 2, (60,))
    expected = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    pairs = int((labels == 1).sum()) * int((labels == 0).sum())
    assert roc_auc(scores, labels) == pytest.approx(expected / pairs)


def test_a_stored_model_comes_back(model: Graphormer, tmp_path: Path) -> None:
    save(model, tmp_path / "model.safetensors")
    stored = load(tmp_path / "model.safetensors")
    assert stored.config == model.config and not stored.training
    graph = mols.graph_of(SMILES["aspirin"])
    torch.testing.assert_close(
        stored(graph.atoms, *graph.structure), model(graph.atoms, *graph.structure),
        rtol=2e-2, atol=2e-2,
    )  # fmt: skip


def test_no_smiles_no_molecule() -> None:
    with pytest.raises(ValueError, match="no SMILES"):
        mols.graph_of("this is not a molecule")


def test_the_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="draws")
    main(["--quick", "--methods", "random,gi,lrp(ah+ln),lrp", "--limit", "3",
          "--output", str(tmp_path)])  # fmt: skip
    text = (tmp_path / "drugs.md").read_text(encoding="utf-8")
    assert text.strip() == capsys.readouterr().out.strip()
    with open(tmp_path / "drugs.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["method"] for row in rows} == {"Random", "GI", "LRP(AH+LN)", "LRP"}
    for curve in ("activation", "pruning"):
        for how in HOW:
            own = [r for r in rows if (r["method"], r["atoms"], r["curve"]) == ("LRP", how, curve)]
            values = torch.tensor([float(r["mean_value"]) for r in own])
            area = torch.trapezoid(values, torch.tensor([float(r["fraction"]) for r in own]))
            assert float(area) == pytest.approx(float(own[0]["area"]), abs=1e-5)
            assert f"{float(own[0]['area']):.3f} [" in text
    assert (tmp_path / "drugs.png").read_bytes().startswith(b"\x89PNG")


def test_the_stored_model_reaches_what_the_results_say(shared: Path) -> None:
    file = shared / "data/bace/bace.csv"
    if not file.is_file():
        pytest.skip(f"no {file}")
    with open(file, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    test = mols.scaffold_split([row["smiles"] for row in rows])[2]
    found = mols.examples((rows[i]["smiles"], int(rows[i]["label"])) for i in test)
    scores = logits(load(WEIGHTS), found).diff(dim=1)[:, 0]
    auc = roc_auc(scores, torch.tensor([e.label for e in found]))
    line = next(line for line in (RESULTS / "bace.md").read_text().splitlines() if "test: " in line)
    assert f"ROC-AUC {auc:.3f}" in line and f"{len(found)} molecules" in line
