"""Numbers of parts as a table and as a heat map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor

from captum_lrp_tx.errors import InputError
from captum_lrp_tx.packages import pandas

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Shown(Protocol):
    """What tables and figures read of a part."""

    @property
    def layer(self) -> int:
        """Counted in the order of the forward pass."""

    @property
    def module(self) -> str:
        """Name of the branch."""

    @property
    def kind(self) -> str:
        """``"attention"`` or ``"mlp"``."""

    @property
    def heads(self) -> Tensor | None:
        """``(batch, heads, tokens)``."""

    def units(self) -> Iterable[tuple[str, int | None, Tensor]]:
        """Kind, number and values ``(batch, tokens)``."""


class PartsResult:
    """Numbers of parts, as a table and as a heat map; the base of the results of methods.

    Attributes:
        parts (sequence): In the order of the forward pass.
        shown (str): The values of a part that are shown, ``(batch, tokens)``: an attribute of it.
    """

    parts: Sequence[Shown]
    shown: ClassVar[str]

    def table(self, by_token: bool = False) -> pd.DataFrame:
        """One row for each head and MLP (or its neurons), and for what else the parts name.

        Args:
            by_token (bool): One row for each token, too, instead of their sum.

        Returns:
            pandas.DataFrame: Columns ``layer``, ``module``, ``kind``, ``number``, ``example``,
            ``token`` (if asked for), and the values: ``relevance`` or ``effect``.

        Raises:
            MissingPackageError: pandas is not installed.

        Example::

            >>> found.table().query("kind == 'head'").nlargest(5, "relevance")
        """
        rows = []
        for part in self.parts:
            for kind, number, found in part.units():
                values = found if by_token else found.sum(-1, keepdim=True)
                for example, row in enumerate(values.tolist()):
                    for token, value in enumerate(row):
                        place = {"token": token} if by_token else {}
                        rows.append(
                            {"layer": part.layer, "module": part.module, "kind": kind,
                             "number": number, "example": example, **place, self.shown: value}
                        )  # fmt: skip
        frame: pd.DataFrame = pandas().DataFrame(rows)
        frame["number"] = frame["number"].astype("Int64")
        return frame

    def figure(
        self,
        example: int = 0,
        *,
        by: Literal["head", "token"] = "head",
        tokens: Sequence[str] | None = None,
        title: str = "",
        width: float = 6.5,
    ) -> Figure:
        """A heat map: layers down, heads and MLP (or tokens) across.

        Args:
            example (int): Which example.
            by (str): ``"head"``: a cell for each head and MLP, summed over tokens; ``"token"``: a
                cell for what each branch adds at each token.
            tokens (sequence of str, optional): Names of the tokens, for ``by="token"``.
            title (str): Headline.
            width (float): In inches.

        Returns:
            matplotlib.figure.Figure: For ``savefig``; not known to pyplot.

        Raises:
            ImportError: matplotlib is not installed.
            InputError: ``by`` is neither.

        Example::

            >>> found.figure(by="token", tokens=names).savefig("parts.png")
        """
        from captum_lrp_tx.visualization.parts import cells_figure

        if by not in ("head", "token"):
            raise InputError(f"by must be 'head' or 'token', not {by!r}.")
        totals: list[Tensor] = [getattr(part, self.shown)[example] for part in self.parts]
        if by == "token":
            values = [total.tolist() for total in totals]
            names = [f"{part.layer} {part.kind}" for part in self.parts]
            columns = list(tokens or map(str, range(max(map(len, values)))))
            return cells_figure(values, names, columns, title=title, width=width)
        rows: list[tuple[int, list[float], float | None]] = []
        for part, total in zip(self.parts, totals, strict=True):
            value = float(total.sum())
            if part.kind == "attention":
                heads = [value] if part.heads is None else part.heads[example].sum(-1).tolist()
                rows.append((part.layer, heads, None))
            elif rows and rows[-1][0] == part.layer:
                rows[-1] = (*rows[-1][:2], value + (rows[-1][2] or 0.0))
            else:
                rows.append((part.layer, [], value))
        count = max(len(heads) for _, heads, _ in rows)
        return cells_figure(
            [[*heads, *[None] * (count - len(heads)), mlp] for _, heads, mlp in rows],
            [str(layer) for layer, _, _ in rows],
            [*map(str, range(count)), "MLP"],
            title=title,
            width=width,
        )
