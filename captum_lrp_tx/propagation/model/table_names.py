"""Names of tables, also of those that several modules share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from captum_lrp_tx.propagation.model.modules import named_tensors


class TableNames:
    """Which name a table goes by where it is looked up.

    A table may have several names: modules share it, or have parameters that are tied.  The one
    counts that is nearest to what is running: ``decoder.embed_tokens`` inside the decoder, even if
    the same module was met as ``shared`` or ``encoder.embed_tokens`` before.

    Args:
        modules (sequence of (str, Module)): The modules of the model, outermost first.

    Example::

        >>> table = nn.Embedding(2, 3)
        >>> model = nn.ModuleDict({"one": nn.Sequential(table), "two": nn.Sequential(table)})
        >>> names = TableNames(list(model.named_modules()))
        >>> names.of(table.weight, ["two"]), names.of(table.weight, [])
        ('two.0', 'one.0')
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self._modules = modules
        self._names: dict[int, list[str]] = {}

    def of(self, table: Tensor, running: Sequence[str]) -> str:
        """The name of a table without ``.weight``.

        Args:
            table (Tensor): The parameter or buffer, or a view of the whole of it.
            running (sequence of str): Names of the modules that are running, outermost first.

        Returns:
            str: ``"embedding"`` if the model has no such tensor.
        """
        if not self._names:
            self._collect()
        known = self._names.get(table.data_ptr(), [])
        for module in reversed(running):
            for name in known:
                if name == module or name.startswith(f"{module}." if module else ""):
                    return name
        return known[0] if known else "embedding"

    def _collect(self) -> None:
        for prefix, module in self._modules:
            self._note(prefix, module)
            for name, child in module.named_children():
                self._note(f"{prefix}.{name}" if prefix else name, child)

    def _note(self, prefix: str, module: nn.Module) -> None:
        for full, tensor in named_tensors([(prefix, module)]):
            name = full.removesuffix(".weight")
            names = self._names.setdefault(tensor.data_ptr(), [])
            if name not in names:
                names.append(name)
