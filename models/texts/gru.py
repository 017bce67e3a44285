"""Text classifier over bytes: a gated recurrent network, pooled by attention.

UTF-8 bytes → embedding → GRU (Cho et al. 2014), one way or both → attention pooling → head. With the states h_t of a
text (Bahdanau et al. 2015; in this form Yang et al. 2016, "Hierarchical attention networks", eqs. 5–7):

    u_t = tanh(W h_t + b),   α = softmax_t(uᵀ u_t),   s = Σ_t α_t h_t

Any language is 256 symbols; a 257th ends every text, so that an empty one has a state too. Texts of a pass are packed:
no padding goes through the network, so that an answer depends on its own text alone. A text of more than 1,025 bytes is
read in pieces, each from the first state on, and pooled over all of them: so no gradient goes further back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions
from models.learner import Blueprint, structural
from models.network import seeded, served
from models.texts.hashing import trimmed

END = 256
PIECE = 4 * 256 + 1  # bytes that a network reads at a stretch: 256 characters have no more


class TextGruOptions(ClassifierOptions):
    """`hidden` is the width of the state, of each direction."""

    learning_rate: float = Field(1e-2, gt=0)
    dim: int = structural(64, ge=1)
    hidden: int = structural(64, ge=1)
    layers: int = structural(1, ge=1, le=4)
    bidirectional: bool = structural(True)


def symbols(x: Tensor) -> tuple[Tensor, Tensor]:
    """The UTF-8 bytes of texts, without a loop over them.

    Args:
        x: (B, L) code points, zero-padded at the end.

    Returns:
        (B, T) int64 bytes, then END, then END as padding; (B,) int64 how many count, the first END with them.
    """
    points = trimmed(x).to(torch.int64)
    sizes = (points > 0).long() + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)  # (B, L) bytes of each
    tail = torch.stack([points >> shift & 0x3F | 0x80 for shift in (18, 12, 6, 0)], 2)  # (B, L, 4) but for the first
    index = torch.arange(4, device=x.device) - 4 + sizes[:, :, None]  # (B, L, 4) index in the character; < 0: none
    marks = torch.tensor([0, 0, 0xC0, 0xE0, 0xF0], device=x.device)[sizes]  # (B, L) of the first byte
    lead = points >> 6 * (sizes - 1).clamp_min(0) | marks  # (B, L)
    values = torch.where(index == 0, lead[:, :, None], tail).flatten(1)  # (B, 4 L)
    found = (index >= 0).flatten(1)
    counts = found.sum(1)
    length = int(counts.max()) + 1 if len(x) else 1
    result = torch.full((len(x), length), END, dtype=torch.int64, device=x.device)
    result[torch.arange(length, device=x.device) < counts[:, None]] = values[found]
    return result, counts + 1


def strings(x: Tensor) -> list[str]:
    """x (B, L) int32 code points, zero-padded → B texts."""
    rows = x.to("cpu", torch.int32).contiguous().numpy()
    return [row.tobytes().decode("utf-32-le").rstrip("\0") for row in rows]


class TextGru(ClassifierNetwork):
    """The network. Texts are (B, L) int32."""

    def __init__(self, options: TextGruOptions, _: tuple[int, ...], classes: Sequence[str]) -> None:
        width = options.hidden * (2 if options.bidirectional else 1)
        super().__init__(width, classes)
        self.embedding = nn.Embedding(END + 1, options.dim)
        self.gru = nn.GRU(
            options.dim, options.hidden, options.layers, batch_first=True, bidirectional=options.bidirectional
        )
        self.keys = nn.Linear(width, width)
        self.query = nn.Parameter(torch.empty(width))

    def features(self, x: Tensor) -> Tensor:
        found, counts = symbols(x)  # (B, T), (B,)
        states = self.states(found, counts)  # (B, T, D)
        scores = torch.tanh(self.keys(states)) @ self.query  # (B, T)
        absent = torch.arange(found.shape[1], device=x.device) >= counts[:, None]
        weights = scores.masked_fill(absent, -math.inf).softmax(1)
        pooled: Tensor = (weights[:, None] @ states)[:, 0]  # (B, D)
        return pooled

    def states(self, found: Tensor, counts: Tensor) -> Tensor:
        """Bytes (B, T) and how many count (B,) → h (B, T, D), of each piece by itself"""
        length = min(PIECE, found.shape[1])
        pieces = F.pad(found, (0, -found.shape[1] % length), value=END).view(-1, length)  # (B P, length)
        firsts = torch.arange(0, found.shape[1], length, device=found.device)
        sizes = (counts[:, None] - firsts).clamp(0, length).flatten()
        there = sizes.nonzero().squeeze(1)
        packed = pack_padded_sequence(
            self.embedding(pieces[there]), sizes[there].cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=length)
        states = states.new_zeros(len(pieces), *states.shape[1:]).index_copy(0, there, states)
        return states.view(len(found), -1, states.shape[2])[:, : found.shape[1]]


def initialise(network: TextGru, seed: int) -> None:
    """Embeddings of N(0, 1), recurrent matrices orthogonal (Saxe et al. 2014), input ones of variance 1 / fan-in.

    The query is zero: at first attention is the mean. Numbers are drawn and made orthogonal on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        network.embedding.weight.copy_(torch.randn(network.embedding.weight.shape, generator=generator))
        for name, parameter in network.gru.named_parameters():
            if name.startswith("weight_hh"):
                width = parameter.shape[1]
                gates = torch.linalg.qr(torch.randn(3, width, width, generator=generator))[0]
                parameter.copy_(gates.reshape(3 * width, width))
            elif name.startswith("weight_ih"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[1]))


def learner(
    options: TextGruOptions, shape: tuple[int, ...], seed: int, device: torch.device
) -> ClassifierLearner[TextGru]:
    network = seeded(lambda: TextGru(options, shape, ()), seed, device)
    initialise(network, seed)
    memory = options.memory(shape, torch.int32, device)
    return ClassifierLearner(network, options, memory, device)


model = served(TextGru)
BLUEPRINT = Blueprint(TextGruOptions, learner, model, "text")
