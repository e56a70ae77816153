"""Files of texts: lines, tabs and CSV; folders that pandas reads; names of classes as targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from captum_lrp_tx import ConservativeLRP
from captum_lrp_tx.audit import explainability
from captum_lrp_tx.cli import main
from captum_lrp_tx.cli.tables import read_table
from captum_lrp_tx.errors import InputError, TargetError
from captum_lrp_tx.models import sentiment
from captum_lrp_tx.runs.encoding import encode

CSV = 'id,Sentence,label\n1,"a charming, funny film",1\n2,"dull\nand slow",0\n3,,1\n'


def test_csv_files_have_columns_and_quotes(tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text(CSV, encoding="utf-8")
    table = read_table(file)
    assert table.rows == [(2, "a charming, funny film", "1"), (4, "dull\nand slow", "0")]
    assert (table.column, table.label) == ("Sentence", "label")
    assert "'Sentence'" in table.told() and "a charming, funny film" in table.told()
    file.write_text("text;class\nfine, really;1\n", encoding="utf-8")
    assert read_table(file).rows == [(2, "fine, really", "1")]
    file.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"without a column \"sentence\".*it has 'a', 'b'"):
        read_table(file)
    file.write_text(f'text\nfine\n"{"film " * 30000}"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"reviews\.csv is no CSV file: field larger .* in line 3"):
        read_table(file)
    file.write_text("text\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no text"):
        read_table(file)


def test_other_files_are_lines_or_have_tabs(tmp_path: Path) -> None:
    file = tmp_path / "reviews.txt"
    file.write_text("a film, really\n\ndull\n", encoding="utf-8")
    assert read_table(file).rows == [(1, "a film, really", ""), (3, "dull", "")]
    file.write_text('sentence\tlabel\na "film"\t1\n', encoding="utf-8")
    assert read_table(file).rows == [(2, 'a "film"', "1")]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("a.csv", "text\na charming, funny film\ndull\n", r"line 2 .*2 fields.*names 1; put "),
     ("a.csv", "text,label\ngood,1\na, b,0\n", r"line 3 .*3 fields.*names 2"),
     ("a.tsv", "text\tlabel\na\tb\t1\n", r"line 2 .*3 fields.*take out the tabs"),
     ("a.csv", 'text\n"dull, slow\ngood\nbad\n', r"no CSV file: unexpected end of data"),
     ("a.csv", "", "holds no text")],
)  # fmt: skip
def test_texts_that_would_be_cut_or_joined_are_refused(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        read_table(file)


def test_lines_keep_their_tabs_and_tables_may_end_in_separators(tmp_path: Path) -> None:
    file = tmp_path / "reviews.txt"
    file.write_text("a film\nan\todd tab\n", encoding="utf-8")
    assert read_table(file).rows == [(1, "a film", ""), (2, "an\todd tab", "")]
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\ngood,1, ,\n", encoding="utf-8")
    assert read_table(file).rows == [(2, "good", "1")]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".xlsx"])
def test_tables_of_other_kinds_are_no_lines_of_text(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"reviews{suffix}"
    file.write_text('{"sentence": "a film", "label": 1}\n')
    with pytest.raises(InputError, match=r"is not read here.*pandas\.read_\w+\(.*to_csv") as told:
        read_table(file)
    if suffix == ".jsonl":  # what it suggests works
        pandas = pytest.importorskip("pandas")
        read, write = str(told.value).split("pandas.read_json")[1].split(".to_csv")
        table = eval(f"pandas.read_json{read}", {"pandas": pandas})
        table.to_csv(tmp_path / eval(write))
        assert read_table(tmp_path / "reviews.csv").rows == [(2, "a film", "1")]


def test_commands_read_csv_and_say_so(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text(CSV, encoding="utf-8")
    assert main(["compare", "--file", str(file), "--methods", "gi"]) == 0
    streams = capsys.readouterr()
    assert "texts from the column 'Sentence'" in streams.err
    assert "1. a charming, funny film" in streams.out and "id," not in streams.out


def test_pandas_reads_the_folder_of_a_data_set(tmp_path: Path, capsys: Any) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    file, out = tmp_path / "reviews.csv", tmp_path / "relevance"
    file.write_text(CSV, encoding="utf-8")
    assert main(["explain-dataset", "--data", str(file), "--out", str(out)]) == 0
    table = pandas.read_parquet(out)
    assert len(table) == 2 and {"tokens", "relevance"} <= set(table.columns)


def test_names_of_classes_are_targets() -> None:
    model, tokenizer = sentiment()
    inputs = tokenizer(["a film", "so dull"], return_tensors="pt")
    lrp = ConservativeLRP(model)
    assert torch.equal(lrp.attribute(inputs, "Positive"), lrp.attribute(inputs, 1))
    mixed = lrp.attribute(inputs, ["negative", "positive"])
    assert torch.equal(mixed, lrp.attribute(inputs, [0, 1]))
    both = lrp.attribute_targets(inputs, ["positive", 0])
    assert torch.equal(both, lrp.attribute_targets(inputs, [1, 0]))
    named = explainability(model, inputs, "positive", file=None)
    assert named.output == explainability(model, inputs, 1, file=None).output
    with pytest.raises(TargetError, match=r"no class 'fine'.*1 positive; for tokens"):
        lrp.attribute(inputs, "fine")
    with pytest.raises(TargetError, match="no class '1'"):  # it may be meant as a token
        lrp.attribute(inputs, "1")
    with pytest.raises(TargetError, match="does not fit the output"):
        ConservativeLRP(torch.nn.Linear(2, 2)).attribute(torch.ones(1, 2), "a")


def test_what_to_do_with_what_is_no_tensor() -> None:
    model, tokenizer = sentiment()
    lrp = ConservativeLRP(model)
    for inputs in ("a film", ["a film", "dull"]):
        with pytest.raises(InputError, match="Tokenize text first"):
            lrp.attribute(inputs, 1)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="Pass torch"):
        lrp.attribute(tokenizer("a film", return_tensors="np")["input_ids"], 1)
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match="image_processor"):
        lrp.attribute(image.new("L", (8, 8)), 1)  # type: ignore[call-overload]


class Columns(dict):
    """A data set as encode() takes it: columns by name."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


@pytest.mark.parametrize("text", ["sentence", "text", "review"])
@pytest.mark.parametrize("label", ["label", "labels", "class"])
def test_a_file_and_a_data_set_have_the_same_names_of_columns(
    tmp_path: Path, text: str, label: str
) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text(f"{text},{label}\na film,1\n")
    assert read_table(file).rows == [(2, "a film", "1")]
    found = encode(Columns({text: ["a film"], label: [1]}), sentiment()[1])
    assert found.labels == [1] and len(found.examples) == 1
