"""Text generator: a recurrent network over bytes, mixed with a bounded online n-gram model.

The stream of a partition is one *lane* of bytes: UTF-8 of a record, a byte 0 as the marker of its end, the next record.
A lane carries its recurrent state and its last bytes from update to update. An update cuts what came into steps of
`step_bytes`. Each step is predicted and then learned, so that the number of optimiser steps depends on the bytes and
not on how they were batched:

1. The network reads the step on from the lane's state: p_N(byte), and so the logit of each bit (`mixing.tree_logits`).
2. The n-grams say what they know of each bit, and learn it (`ngrams`). The mixer makes both into the prediction and
   learns (`mixing`). The reported loss is the -log of what was predicted, here, in nats a record, marker included.
3. The network learns: truncated back-propagation through time (Werbos 1990; Mikolov et al. 2010) through windows of
   `bptt_bytes`, each begun at the state that the lane had there (no gradient goes past it), with `replay_windows`
   windows drawn uniformly from the last `history` bytes and begun at zero; the mean of -log p_N over all bytes, the
   gradient clipped to norm 1 (Pascanu et al. 2013), one AdamW step.

With `average` the network of 1 is the moving average of the one of 3 (`moving_average`): it is what predicts and is
served, and the states of lanes are its own. Windows of 3 begin at them, as they always begin at states of weights that
have since moved on. So an average costs no further pass.

Cells are LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho et al. 2014), dropout has one mask a window (Gal and
Ghahramani 2016), and tied embeddings use one matrix for bytes that come in and out (Press and Wolf 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.capabilities import Sampling
from models.labels import Labels
from models.learner import Batch, Blueprint, Options, Report, Rows, State, copy_into, module_on, structural
from models.moving_average import PREFIX, MovingAverage, decay_of_updates
from models.network import served
from models.optimizer import AdamW
from models.replaying import Labelled
from models.texts.mixing import Mixer, byte_log_probabilities, nats, tree_logits
from models.texts.ngrams import CHUNK, TAIL, Ngrams, contexts, nodes_of
from models.texts.utf8 import Utf8, drawn, held_back

MARKER = 0
CLIP = 1.0


class TextGeneratorOptions(Options):
    """See the module's docstring. `slots` of 0 leave the n-grams out: the network predicts alone."""

    cell: Literal["lstm", "gru"] = structural("lstm")
    hidden: int = structural(256, ge=1)
    layers: int = structural(1, ge=1, le=256)
    embedding: int = structural(64, ge=1)
    tied: bool = structural(False)
    dropout: float = Field(0.1, ge=0, lt=1)
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    average: float = structural(0.0, ge=0, lt=1)  # d, of the network's steps: 0.99 is the last hundred
    step_bytes: int = Field(128, ge=1, le=CHUNK - TAIL)
    bptt_bytes: int = Field(64, ge=1)
    replay_windows: int = Field(12, ge=0)
    history: int = structural(1 << 20, ge=1)  # bytes
    lanes: int = structural(16, ge=1)  # partitions; beyond them the one that was silent longest begins anew
    slots: int = structural(1 << 22, ge=0)  # of the n-grams, 8 bytes each
    long_texts: Literal["whole", "beginning"] = structural("whole", before="beginning")  # beyond `max_chars`
    mixing_rate: float = Field(0.02, gt=0)  # at first; it falls to the next
    least_mixing_rate: float = Field(0.0015, gt=0)

    @model_validator(mode="after")
    def _slots(self) -> TextGeneratorOptions:
        if self.slots & (self.slots - 1):
            raise ValueError(f"slots is {self.slots}. Give a power of two, or 0 for none.")
        return self


class ByteNetwork(nn.Module):
    """Embedding, recurrent layers, a linear layer to 256 logits. A state is (parts, layers, B, H): an LSTM's has two
    parts, a GRU's one."""

    def __init__(self, options: TextGeneratorOptions) -> None:
        super().__init__()
        lstm = options.cell == "lstm"
        self.parts, self.hidden, self.dropout = 1 + lstm, options.hidden, options.dropout
        kind = nn.LSTM if lstm else nn.GRU
        sizes = [options.embedding] + [options.hidden] * options.layers
        self.embedding = nn.Embedding(256, options.embedding)
        self.layers = nn.ModuleList(kind(*pair, batch_first=True) for pair in pairwise(sizes))
        self.out = nn.Linear(options.hidden, options.embedding if options.tied else 256)
        self.tied_bias = nn.Parameter(torch.empty(256)) if options.tied else None

    def initialise(self, generator: torch.Generator) -> None:
        """Weights from the generator: N(0, 1/H) for recurrent matrices, forget gates open, all bytes alike."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.zero_()
                    if name.endswith("bias_ih_l0") and self.parts == 2:
                        parameter[self.hidden : 2 * self.hidden] = 1.0
                elif name == "out.weight" and self.tied_bias is None:
                    parameter.zero_()
                else:
                    std = 0.5 if name == "embedding.weight" else 1 / math.sqrt(parameter.shape[1])
                    parameter.copy_(std * torch.randn(parameter.shape, generator=generator))

    def zeros(self, count: int) -> Tensor:
        """The state (parts, layers, count, H) before any byte."""
        return self.out.weight.new_zeros(self.parts, len(self.layers), count, self.hidden)

    def forward(self, x: Tensor, state: Tensor, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Bytes x (B, T) int64 and the state before them → logits (B, T, 256) of the byte after each, the state after.

        Args:
            rng: draws the masks of dropout; None: there is none.
        """
        h = self.embedding(x)  # (B, T, E)
        after = []
        for number, layer in enumerate(self.layers):
            before = state[:, number : number + 1]  # (parts, 1, B, H)
            h, ends = layer(h, (before[0], before[1]) if self.parts == 2 else before[0])
            after.append(torch.stack(ends) if self.parts == 2 else ends[None])
            if rng is not None and self.dropout:
                kept = torch.rand(len(x), 1, self.hidden, generator=rng) >= self.dropout
                h = h * (kept.to(h.device) / (1 - self.dropout))
        logits = self.out(h)
        if self.tied_bias is not None:
            logits = F.linear(logits, self.embedding.weight, self.tied_bias)
        return logits, torch.cat(after, 1)


class TextGeneratorModel(nn.Module):
    """The served model. Records are (B, L) int32."""

    classes: list[str]

    def __init__(self, options: TextGeneratorOptions, _: tuple[int, ...], classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)
        self.network = ByteNetwork(options)
        self.ngrams = Ngrams(options.slots) if options.slots else None
        self.mixer = Mixer(options.mixing_rate, options.least_mixing_rate) if options.slots else None

    @torch.no_grad()
    def evaluate(self, x: Tensor, labels: Sequence[str | None]) -> float:
        """Mean of -log p over records that are not learned, each by itself, marker included, in nats."""
        device = self.network.out.weight.device
        total = 0.0
        for row in x:
            data = encoded(row).to(device)
            before = torch.cat([data.new_zeros(1), data[:-1]]).to(torch.int64)
            logits, _ = self.network(before[None], self.network.zeros(1))
            log_p = F.log_softmax(logits[0], 1)
            tail = data.new_zeros(TAIL)
            for start in range(0, len(data), CHUNK - TAIL):
                piece = data[start : start + CHUNK - TAIL]
                total += self._nats(tail, piece, log_p[start : start + len(piece)]).sum().item()
                tail = torch.cat([tail, piece])[-TAIL:]
        return total / len(x)

    def _nats(self, tail: Tensor, data: Tensor, log_p: Tensor) -> Tensor:
        """The -log p of each byte (n,) after a tail (TAIL,), with the network's log_p (n, 256); nothing is learned."""
        if self.ngrams is None or self.mixer is None:
            return -log_p.gather(1, data.to(torch.int64)[:, None]).squeeze(1)
        stream = torch.cat([tail, data])
        nodes, bits = nodes_of(data)
        seen = self.ngrams.look(contexts(stream), nodes)
        q = self.mixer.probabilities(
            seen, tree_logits(log_p).gather(1, nodes).flatten(), before(stream, 8), nodes.flatten()
        )
        return nats(q, bits.flatten()).view(-1, 8).sum(1)

    @torch.no_grad()
    def complete(self, prompt: str, seed: int, sampling: Sampling) -> Iterator[str]:
        """What follows the prompt at the beginning of a record, see `capabilities.TextGenerator`.

        Bytes that would break a character, or begin one for which `max_bytes` leaves no room, have probability 0.
        """
        device = self.network.out.weight.device
        generator = torch.Generator("cpu").manual_seed(seed)
        data = torch.tensor([MARKER, *prompt.encode("utf-8", "replace")], dtype=torch.uint8, device=device)
        tail = torch.cat([data.new_zeros(TAIL), data])[-TAIL:]
        logits, state = self.network(data.to(torch.int64)[None], self.network.zeros(1))
        utf8, text, character = Utf8(), "", bytearray()
        for room in range(sampling.max_bytes, 0, -1):
            log_p = self._next(tail, F.log_softmax(logits[0, -1:], 1)).cpu()
            byte = drawn(log_p.masked_fill(~utf8.allowed(room), -math.inf), sampling, generator)
            if byte == MARKER:
                break
            utf8.take(byte)
            character.append(byte)
            if utf8.whole:
                text += character.decode()
                character.clear()
                if sampling.stop and sampling.stop in text:
                    text = text[: text.index(sampling.stop)]
                    break
                ready = len(text) - held_back(text, sampling.stop)
                if ready:
                    yield text[:ready]
                    text = text[ready:]
            drawn_byte = data.new_full((1,), byte)
            tail = torch.cat([tail[1:], drawn_byte])
            logits, state = self.network(drawn_byte.to(torch.int64)[None], state)
        if text:
            yield text

    def _next(self, tail: Tensor, log_p: Tensor) -> Tensor:
        """The log-probabilities (256,) of the next byte, with the network's log_p (1, 256)"""
        if self.ngrams is None or self.mixer is None:
            return log_p[0].to(torch.float64)
        stream = torch.cat([tail, tail.new_zeros(1)])
        nodes = torch.arange(256, device=tail.device)
        seen = self.ngrams.look(contexts(stream), nodes[None])
        q = self.mixer.probabilities(seen, tree_logits(log_p)[0], before(stream, 256), nodes)
        return byte_log_probabilities(q)


def encoded(row: Tensor) -> Tensor:
    """Code points (L,), zero-padded → the record's bytes and its marker, (n,) uint8 on the CPU"""
    points = row[row != 0].cpu().numpy().astype("<u4").tobytes()
    text = points.decode("utf-32-le", "surrogatepass").encode("utf-8", "replace")
    return torch.frombuffer(bytearray(text + bytes([MARKER])), dtype=torch.uint8)


def before(stream: Tensor, times: int) -> Tensor:
    """The last byte and the one before it of each byte after the tail, each `times` times: (n · times, 2) int64"""
    wide = stream.to(torch.int64)
    return torch.stack([wide[TAIL - 1 : -1], wide[TAIL - 2 : -2]], 1).repeat_interleave(times, 0)


class TextGeneratorLearner(Labelled):
    """Learns a `TextGeneratorModel`: every byte once by the n-grams and the mixer, and in windows by the network."""

    needs_label = False
    replay_capacity = replay_size = 0  # records are not kept: the history is bytes

    def __init__(self, options: TextGeneratorOptions, shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        model = module_on(lambda: TextGeneratorModel(options, shape, ()), torch.device("cpu"))
        model.network.initialise(torch.Generator("cpu").manual_seed(seed))
        self.model = model.to(device)
        self._labels = Labels(model.classes, 0)
        self.options = options
        self._device = device
        self._learning = model.network
        self._average = MovingAverage(self._learning, options.average > 0)
        model.network = self._average.model
        self._optimizer = AdamW(self._learning, learning_rate=options.learning_rate, weight_decay=options.weight_decay)
        self._steps = 0
        self._lanes: list[tuple[int, int]] = []  # (topic, partition) of each row of the two below
        self._silent: list[int] = []  # rows, the one that was silent longest first
        self._states = model.network.zeros(options.lanes)  # (parts, layers, lanes, H)
        self._tails = torch.zeros(options.lanes, TAIL, dtype=torch.uint8, device=device)
        self._history = torch.zeros(options.history, dtype=torch.uint8, device=device)
        self._seen = 0  # bytes
        self._changed = {"table": Touched(options.slots), "history": Touched(options.history)}

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        streams: dict[tuple[int, int], list[int]] = {}  # lane → its records
        for number, (topic, partition, _) in enumerate(batch.origins.tolist()):
            streams.setdefault((topic, partition), []).append(number)
        total = torch.zeros(len(batch), dtype=torch.float64, device=self._device)
        length = 0
        x = batch.x.cpu()
        for lane, records in streams.items():
            row = self._row(lane)
            texts = [encoded(batch.whole.get(record, x[record])) for record in records]
            owners = torch.repeat_interleave(torch.tensor(records), torch.tensor([len(text) for text in texts]))
            data, owners = torch.cat(texts).to(self._device), owners.to(self._device)
            length += len(data)
            size = self.options.step_bytes
            for step, owner in zip(torch.split(data, size), torch.split(owners, size), strict=True):
                total.index_add_(0, owner, self._step(row, step, rng).to(torch.float64))
        bits = total.sum().item() / math.log(2)
        return Report(total.mean().item(), metrics={"bits_per_byte": bits / length})

    def _row(self, lane: tuple[int, int]) -> int:
        """The row of this lane, which is now the last one heard of; a new one begins with zeros."""
        if lane in self._lanes:
            row = self._lanes.index(lane)
            self._silent.remove(row)
        elif len(self._lanes) < self.options.lanes:
            row = len(self._lanes)
            self._lanes.append(lane)
        else:
            row = self._silent.pop(0)
            self._lanes[row] = lane
            self._states[:, :, row] = 0
            self._tails[row] = 0
        self._silent.append(row)
        return row

    def _step(self, row: int, data: Tensor, rng: torch.Generator) -> Tensor:
        """Predicts and then learns the bytes (n,) of a lane: their losses (n,) in nats"""
        network = self.model.network
        stream = torch.cat([self._tails[row], data])
        inputs = stream[TAIL - 1 : -1].to(torch.int64)  # (n,) the byte before each
        with torch.no_grad():
            state, states, rows = self._states[:, :, row : row + 1].clone(), [], []
            for window in torch.split(inputs, self.options.bptt_bytes):
                states.append(state)
                logits, state = network(window[None], state)
                rows.append(F.log_softmax(logits[0], 1))
            losses = self._mixed(stream, data, torch.cat(rows))
            self._states[:, :, row : row + 1] = state
            self._tails[row] = stream[-TAIL:]
        self._learn_windows(inputs, data, torch.cat(states, 2), rng)
        self._remember(data)
        return losses

    def _mixed(self, stream: Tensor, data: Tensor, log_p: Tensor) -> Tensor:
        """The losses (n,) of the bytes, which the n-grams and the mixer then have learned"""
        model = self.model
        if model.ngrams is None or model.mixer is None:
            return -log_p.gather(1, data.to(torch.int64)[:, None]).squeeze(1)
        seen, written = model.ngrams.learn(contexts(stream), data)
        self._changed["table"].add(written)
        nodes, bits = nodes_of(data)
        logits = tree_logits(log_p).gather(1, nodes).flatten()
        q = model.mixer.learn(seen, logits, before(stream, 8), nodes.flatten(), bits.flatten())
        return nats(q, bits.flatten()).view(-1, 8).sum(1)

    def _learn_windows(self, inputs: Tensor, targets: Tensor, states: Tensor, rng: torch.Generator) -> None:
        """One step of the network on a lane's inputs and targets (n,), with its states (…, windows, H)."""
        width, network = self.options.bptt_bytes, self._learning
        ragged = -len(inputs) % width if len(inputs) > width else 0  # one window is as long as it is
        x = F.pad(inputs, (0, ragged)).view(states.shape[2], -1)
        y = F.pad(targets.to(torch.int64), (0, ragged), value=-1).view_as(x)
        remembered = min(self._seen, self.options.history)
        if self.options.replay_windows and remembered > width:
            if x.shape[1] < width:
                x, y = F.pad(x, (0, width - x.shape[1])), F.pad(y, (0, width - y.shape[1]), value=-1)
            starts = torch.randint(remembered - width, (self.options.replay_windows,), generator=rng)
            starts += self._seen - remembered
            places = (starts[:, None] + torch.arange(width + 1)).to(self._device) % self.options.history
            past = self._history[places].to(torch.int64)  # (R, width + 1)
            x, y = torch.cat([x, past[:, :-1]]), torch.cat([y, past[:, 1:]])
            states = torch.cat([states, network.zeros(len(past))], 2)
        logits, _ = network(x, states, rng)
        F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        self._optimizer.step()
        self._average.move(decay_of_updates(self.options.average, self._steps))
        self._steps += 1

    def _remember(self, data: Tensor) -> None:
        """Puts the bytes into the ring of the last `history` ones."""
        data, self._seen = data[-self.options.history :], self._seen + len(data)
        places = torch.arange(self._seen - len(data), self._seen, device=self._device) % self.options.history
        self._history[places] = data
        self._changed["history"].add(places)

    def capture(self) -> State:
        serving: dict[str, Tensor | Rows] = dict(self.model.state_dict())
        if self.model.ngrams is not None:
            serving["ngrams.table"] = Rows(self.model.ngrams.table, self._changed["table"].take())
        training: dict[str, Tensor | Rows] = {
            **self._optimizer.capture(),
            "lanes/states": self._states,
            "lanes/tails": self._tails,
            "history": Rows(self._history, self._changed["history"].take()),
        }
        training |= self._average.capture()
        lanes = [list(lane) for lane in self._lanes]
        return State(serving, training, {"classes": [], "lanes": lanes, "silent": self._silent, "seen": self._seen})

    def restore(self, state: State) -> None:
        network = {name: value for name, value in state.training.items() if name.startswith(("optimizer/", PREFIX))}
        own = {"lanes/states": self._states, "lanes/tails": self._tails, "history": self._history}
        copy_into(self.model.state_dict(), state.serving)
        copy_into(own, {name: value for name, value in state.training.items() if name not in network})
        self._average.restore(network)
        self._optimizer.restore({name: value for name, value in network.items() if name.startswith("optimizer/")})
        self._steps = int(self._optimizer.capture()["optimizer/step"])  # exact to 2²⁴, when d is long constant
        self._lanes = [(topic, partition) for topic, partition in state.meta["lanes"]]
        self._silent, self._seen = list(state.meta["silent"]), state.meta["seen"]
        for changed in self._changed.values():
            changed.take()


class Touched:
    """Which rows were written since the last `take`, one bit a row; before the first one, all of them."""

    def __init__(self, rows: int) -> None:
        self._rows = torch.zeros(rows, dtype=torch.bool)
        self._tracking = False

    def add(self, rows: Tensor) -> None:
        self._rows[rows.cpu()] = True

    def take(self) -> Tensor | None:
        rows = self._rows.nonzero().squeeze(1) if self._tracking else None
        self._rows.zero_()
        self._tracking = True
        return rows


model = served(TextGeneratorModel)
BLUEPRINT = Blueprint(
    TextGeneratorOptions,
    TextGeneratorLearner,
    model,
    "text",
    reads_whole=lambda options: options.long_texts == "whole",
)
