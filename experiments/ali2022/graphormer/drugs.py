"""Forty medicines, for a quick run without the data set: which of them act on the brain?

Common medicines by their international names. Class 1 acts on the central nervous system; class 0
is used for its effect elsewhere.  A toy task to see that everything runs: forty molecules are
too few to learn it from.
"""

from __future__ import annotations

#: Name, SMILES string, class.
DRUGS: tuple[tuple[str, str, int], ...] = (
    ("aspirin", "CC(=O)Oc1ccccc1C(=O)O", 0),
    ("ibuprofen", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", 0),
    ("naproxen", "COc1ccc2cc(ccc2c1)[C@H](C)C(=O)O", 0),
    ("diclofenac", "OC(=O)Cc1ccccc1Nc1c(Cl)cccc1Cl", 0),
    ("metformin", "CN(C)C(=N)NC(N)=N", 0),
    ("captopril", "C[C@H](CS)C(=O)N1CCC[C@H]1C(=O)O", 0),
    ("enalapril", "CCOC(=O)[C@H](CCc1ccccc1)N[C@@H](C)C(=O)N1CCC[C@H]1C(=O)O", 0),
    ("atenolol", "CC(C)NCC(O)COc1ccc(CC(N)=O)cc1", 0),
    ("furosemide", "NS(=O)(=O)c1cc(C(=O)O)c(NCc2ccco2)cc1Cl", 0),
    ("hydrochlorothiazide", "NS(=O)(=O)c1cc2c(cc1Cl)NCNS2(=O)=O", 0),
    ("warfarin", "CC(=O)CC(c1ccccc1)C1=C(O)c2ccccc2OC1=O", 0),
    ("omeprazole", "COc1ccc2[nH]c(nc2c1)S(=O)Cc1ncc(C)c(OC)c1C", 0),
    ("cimetidine", "CN/C(=N/C#N)NCCSCc1nc[nH]c1C", 0),
    ("ciprofloxacin", "OC(=O)C1=CN(C2CC2)c2cc(N3CCNCC3)c(F)cc2C1=O", 0),
    ("trimethoprim", "COc1cc(Cc2cnc(N)nc2N)cc(OC)c1OC", 0),
    ("sulfamethoxazole", "Cc1cc(NS(=O)(=O)c2ccc(N)cc2)no1", 0),
    ("isoniazid", "NNC(=O)c1ccncc1", 0),
    ("allopurinol", "O=c1[nH]cnc2[nH]ncc12", 0),
    ("salbutamol", "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1", 0),
    ("amoxicillin", "CC1(C)S[C@@H]2[C@H](NC(=O)[C@H](N)c3ccc(O)cc3)C(=O)N2[C@H]1C(=O)O", 0),
    ("caffeine", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", 1),
    ("nicotine", "CN1CCC[C@H]1c1cccnc1", 1),
    ("diazepam", "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc12", 1),
    ("alprazolam", "Cc1nnc2CN=C(c3ccccc3)c3cc(Cl)ccc3-n12", 1),
    ("fluoxetine", "CNCCC(Oc1ccc(cc1)C(F)(F)F)c1ccccc1", 1),
    ("sertraline", "CN[C@H]1CC[C@@H](c2ccc(Cl)c(Cl)c2)c2ccccc12", 1),
    ("citalopram", "CN(C)CCCC1(OCc2cc(C#N)ccc12)c1ccc(F)cc1", 1),
    ("amitriptyline", "CN(C)CCC=C1c2ccccc2CCc2ccccc12", 1),
    ("bupropion", "CC(NC(C)(C)C)C(=O)c1cccc(Cl)c1", 1),
    ("haloperidol", "OC1(CCN(CCCC(=O)c2ccc(F)cc2)CC1)c1ccc(Cl)cc1", 1),
    ("chlorpromazine", "CN(C)CCCN1c2ccccc2Sc2ccc(Cl)cc12", 1),
    ("clozapine", "CN1CCN(CC1)C1=Nc2cc(Cl)ccc2Nc2ccccc12", 1),
    ("phenytoin", "O=C1NC(=O)C(N1)(c1ccccc1)c1ccccc1", 1),
    ("carbamazepine", "NC(=O)N1c2ccccc2C=Cc2ccccc12", 1),
    ("phenobarbital", "CCC1(C(=O)NC(=O)NC1=O)c1ccccc1", 1),
    ("zolpidem", "Cc1ccc(cc1)-c1nc2ccc(C)cn2c1CC(=O)N(C)C", 1),
    ("morphine", "CN1CC[C@]23[C@H]4Oc5c2c(C[C@@H]1[C@@H]3C=C[C@@H]4O)ccc5O", 1),
    ("fentanyl", "CCC(=O)N(c1ccccc1)C1CCN(CCc2ccccc2)CC1", 1),
    ("donepezil", "COc1cc2CC(CC3CCN(Cc4ccccc4)CC3)C(=O)c2cc1OC", 1),
    ("memantine", "CC12CC3CC(C)(C1)CC(N)(C3)C2", 1),
)  # fmt: skip
