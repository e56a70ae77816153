"""Recurrent layers of torch against the same cells written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from captum_lrp_tx import ConservativeLRP, audit
from captum_lrp_tx.errors import TrainingModeWarning

PRESETS = [
    {"rules": "gi"},
    {"rules": "ah+ln"},
    {},
    {"bias": "distribute"},
    {"bias": "ignore", "epsilon": 0.3},
    {"rules": "lrp-gamma"},
    {"rules": "lrp-gamma", "bias": "distribute"},
    {"rules": "attnlrp"},
    {"rules": "mambalrp", "epsilon": 0.1},
]


def one_step(layer: nn.Module, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> list[Tensor]:
    """The next state by the formulas in torch's documentation, for one time step."""
    w_ih, w_hh, b_ih, b_hh, *w_hr = weights
    if isinstance(layer, (nn.GRU, nn.GRUCell)):
        r1, z1, n1 = F.linear(x, w_ih, b_ih).chunk(3, -1)
        r2, z2, n2 = F.linear(h, w_hh, b_hh).chunk(3, -1)
        z = torch.sigmoid(z1 + z2)
        new = torch.tanh(n1 + torch.sigmoid(r1 + r2) * n2)
        return [(1 - z) * new + z * h, c]
    total = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
        i, f, g, o = total.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return [F.linear(h, w_hr[0]) if w_hr else h, c]
    act = torch.relu if getattr(layer, "nonlinearity", "tanh") == "relu" else torch.tanh
    return [act(total), c]


def by_hand(layer: nn.RNNBase, x: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs of one example ``(steps, features)`` and the final hidden states."""
    finals = []
    each = len(layer.all_weights[0])
    for n, weights in enumerate(layer.all_weights):
        if n % (2 if layer.bidirectional else 1) == 0:
            source, outputs = x, []
        steps = list(range(len(source)))
        backwards = layer.bidirectional and n % 2 == 1
        h, c = states[0][n : n + 1], states[-1][n : n + 1]
        found: list[Tensor] = []
        assert len(weights) == each
        for t in reversed(steps) if backwards else steps:
            weights = [*weights[:4]] if each < 5 else weights
            h, c = one_step(layer, source[t : t + 1], h, c, *weights)
            found.append(h)
        finals.append(h)
        outputs.append(torch.cat(found[::-1] if backwards else found))
        x = torch.cat(outputs, -1)
    return x, torch.cat(finals)


class Reader(nn.Module):
    """Both results of a recurrent layer, read by a linear layer; or the same by hand."""

    def __init__(
        self, layer: nn.RNNBase, lengths: list[int], given: bool = False, written: bool = False
    ) -> None:
        super().__init__()
        self.layer, self.lengths, self.given, self.written = layer, lengths, given, written
        width = layer.proj_size or layer.hidden_size
        count = len(layer.all_weights)
        self.widths = [width] + [layer.hidden_size] * isinstance(layer, nn.LSTM)
        generator = torch.Generator().manual_seed(5)
        self.states = [
            torch.randn(count, 3, w, generator=generator).double() for w in self.widths
        ]  # fmt: skip
        self.read = nn.Linear(width * (2 if layer.bidirectional else 1), 2).double()
        self.end = nn.Linear(width, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        if self.written:
            states = self.states if self.given else [torch.zeros_like(s) for s in self.states]
            pairs = [
                by_hand(self.layer, row[:n], [s[:, i] for s in states])
                for i, (row, n) in enumerate(zip(x, self.lengths))
            ]
            y = torch.stack([F.pad(o, (0, 0, 0, x.shape[1] - len(o))) for o, _ in pairs])
            h = torch.stack([h for _, h in pairs], 1)
        else:
            hx = tuple(self.states) if isinstance(self.layer, nn.LSTM) else self.states[0]
            hx = hx if self.given else None
            packed = min(self.lengths) < x.shape[1]
            if packed:
                lengths = torch.tensor(self.lengths)
                source = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                y, h = self.layer(source, hx)
                y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
            elif self.layer.batch_first:
                y, h = self.layer(x, hx)
            else:
                y, h = self.layer(x.transpose(0, 1), hx)
                y = y.transpose(0, 1)
            h = h[0] if isinstance(h, tuple) else h
        mask = torch.tensor([[[float(t < n)] for t in range(x.shape[1])] for n in self.lengths])
        return (self.read(y) * mask.double()).sum(1) + self.end(h).sum(0)


LAYERS = {
    "tanh": lambda: nn.RNN(5, 6, batch_first=True),
    "relu, two layers": lambda: nn.RNN(5, 6, nonlinearity="relu", num_layers=2),
    "LSTM": lambda: nn.LSTM(5, 6),
    "LSTM with projections, both ways": lambda: nn.LSTM(
        5, 6, proj_size=3, bidirectional=True, num_layers=2, batch_first=True
    ),
    "GRU, both ways": lambda: nn.GRU(5, 6, bidirectional=True, batch_first=True),
    "GRU, two layers": lambda: nn.GRU(5, 6, num_layers=2),
}


def pair(name: str, lengths: list[int], given: bool) -> tuple[Reader, Reader, Tensor]:
    torch.manual_seed(len(name))
    layer = LAYERS[name]().double()
    model = Reader(layer, lengths, given).eval()
    hand = Reader(layer, lengths, given, written=True).eval()
    hand.load_state_dict(model.state_dict())
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), hand(x))
    return model, hand, x


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lengths", [[4, 4, 4], [2, 4, 1]], ids=["padded", "packed"])
def test_layers_are_their_equations(name: str, lengths: list[int]) -> None:
    turn = list(LAYERS).index(name) + lengths[-1]  # half of the presets of each, in turns
    for given in (False, True):
        model, hand, x = pair(name, lengths, given)
        for kw in PRESETS[(turn + 2 * given) % 4 :: 4]:
            found = ConservativeLRP(model, **kw).attribute(x, target=1)
            expected = ConservativeLRP(hand, **kw).attribute(x, target=1)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=str(kw))


@pytest.mark.parametrize("name", LAYERS)
def test_what_constants_take_is_booked(name: str) -> None:
    model, hand, x = pair(name, [3, 4, 2], given=True)
    for kw in ({}, {"bias": "distribute"}):
        report = audit.explainability(model, x, target=1, file=None, **kw)
        written = audit.explainability(hand, x, target=1, file=None, **kw)
        assert report.is_covered
        assert abs(report.conservation_error) < 1e-6
        assert sum(report.absorbed.values()) == pytest.approx(
            sum(written.absorbed.values()), rel=1e-4
        )


def test_nothing_is_lost_under_distribute() -> None:
    model, _, x = pair("relu, two layers", [4, 4, 4], given=False)
    total = ConservativeLRP(model, bias="distribute").attribute(x, target=1, strict=True)
    torch.testing.assert_close(total.sum((1, 2)), model(x)[:, 1])


class Outputs(nn.Module):
    """Sum over time of what a layer puts out, which is kept."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x if self.layer.batch_first else x.transpose(0, 1))[0]
        self.seen = y.detach()
        return (y if self.layer.batch_first else y.transpose(0, 1)).sum(1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rules", ["gi", "ah+ln", "lrp", "lrp-gamma"])
def test_the_forward_result_is_that_of_the_kernel(name: str, rules: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = Outputs(LAYERS[name]()).eval()
        x = torch.randn(3, 4, 5)
        model(x)
        plain = model.seen
        ConservativeLRP(model, rules=rules).attribute(x, target=1)
        assert model.seen is not plain
        assert torch.equal(model.seen, plain)


class Cells(nn.Module):
    """A cell run over time, or the same by hand."""

    def __init__(self, cell: nn.Module, written: bool) -> None:
        super().__init__()
        self.cell, self.written, self.out = cell, written, nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        c = self.cell
        states = [x.new_zeros(len(x), 6), x.new_zeros(len(x), 6)]
        for t in range(x.shape[1]):
            if self.written:
                states = one_step(
                    c, x[:, t], *states, c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh
                )
            elif isinstance(c, nn.LSTMCell):
                states = c(x[:, t], tuple(states))
            else:
                states = [c(x[:, t], states[0]), states[1]]
        return self.out(states[0])


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_are_their_equations(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    cell = kind(5, 6).double()
    model, hand = Cells(cell, False).eval(), Cells(cell, True).eval()
    hand.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for kw in PRESETS:
        found = ConservativeLRP(model, **kw).attribute(x, target=0)
        expected = ConservativeLRP(hand, **kw).attribute(x, target=0)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=str(kw))


def test_sequences_without_a_batch_and_without_biases() -> None:
    torch.manual_seed(2)
    layer = nn.LSTM(5, 6, bias=False).double()

    class One(nn.Module):
        def __init__(self, single: bool) -> None:
            super().__init__()
            self.layer, self.single = layer, single

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x[0])[0] if self.single else self.layer(x.transpose(0, 1))[0][:, 0]
            return y.sum(0, keepdim=True)

    x = torch.randn(1, 4, 5, dtype=torch.float64)
    single, batched = (ConservativeLRP(One(s)).attribute(x, target=2) for s in (True, False))
    torch.testing.assert_close(single, batched)
    report = audit.explainability(One(True), x, target=2, file=None)
    assert report.is_covered and abs(report.conservation_error) < 1e-9 and not report.absorbed


def test_dropout_between_layers_is_that_of_the_forward_pass() -> None:
    torch.manual_seed(3)
    model = Reader(nn.GRU(5, 6, num_layers=2, dropout=0.5, batch_first=True), [4, 4, 4]).double()
    model.train()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.manual_seed(9)
    output = model(x)[:, 1].detach()
    drawn = torch.rand(1)
    torch.manual_seed(9)
    with pytest.warns(TrainingModeWarning, match="dropout"):
        relevance = ConservativeLRP(model, bias="distribute").attribute(x, target=1)
    assert torch.equal(torch.rand(1), drawn)
    torch.testing.assert_close(relevance.sum((1, 2)), output)


def test_a_layer_without_the_inputs_is_a_constant() -> None:
    torch.manual_seed(4)
    layer, out = nn.GRU(5, 6), nn.Linear(6, 2)

    def forward(x: Tensor) -> Tensor:
        return out(x + layer(torch.ones(1, 2, 5))[0][0])

    x = torch.randn(2, 6)
    total = ConservativeLRP(forward).attribute(x, target=0)
    torch.testing.assert_close(total, x * out.weight[0].detach())


def test_a_packed_sequence_keeps_its_class() -> None:
    layer = nn.GRU(5, 6)
    seen = []

    def forward(x: Tensor) -> Tensor:
        y, _ = layer(pack_padded_sequence(x, torch.tensor([4, 3])))
        seen.append(type(y))
        return pad_packed_sequence(y)[0].sum(0)

    ConservativeLRP(forward).attribute(torch.randn(4, 2, 5), target=0)
    assert seen == [PackedSequence]
