"""The text generator: bytes of Shakespeare in order, predicted before they are learned, and a plain torch loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learners.data import Set, batches, shakespeare
from benchmarks.report import Figure, Findings
from models.capabilities import Sampling
from models.learner import Rows, update_generator
from models.texts.generator import CLIP, TextGeneratorLearner, TextGeneratorModel, TextGeneratorOptions

CPU = torch.device("cpu")
RECORDS = 16  # an update
LIMIT_MIN, FLOOR, GOAL = 10, (2.00, 1.91), (1.85, 1.78)
ROUNDS, ROUND_BYTES = 8, 8192  # against the plain loop


def speeches(data: bytes) -> Set:
    """The file cut at its empty lines, one speech a record: what is left out, two line ends, is the record's marker.

    So the records and their markers are the whole file, and the bits of all of them are spread over all its bytes.
    """
    texts = [text.decode() for text in data.split(b"\n\n")]
    x = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int32)
    for row, text in enumerate(texts):
        x[row, : len(text)] = torch.tensor([ord(c) for c in text], dtype=torch.int32)
    return Set(x, [""] * len(texts))


def measure(data: Path, sheets: Path, say: Callable[[str], None]) -> Findings:
    raw = shakespeare(data)
    options = TextGeneratorOptions()
    ours = TextGeneratorLearner(options, (1,), 0, CPU)
    started = time.process_time()
    curve = _learned(ours, raw, say)
    cpu_min = (time.process_time() - started) / 60
    whole, tenth = _bits_per_byte(curve, 0.0), _bits_per_byte(curve, 0.9)
    state = ours.capture()
    values = [*state.serving.values(), *state.training.values()]
    state_bytes = sum((value.tensor if isinstance(value, Rows) else value).nbytes for value in values)
    sample, per_byte_ms = _sample(ours.model)
    say(sample)
    plain, network = _against_a_plain_loop(raw)
    ratio = plain / network
    return Findings(
        [
            Figure(
                "text-generator, tinyshakespeare in order, bits per byte: whole file / last tenth",
                f"{whole:.3f} / {tenth:.3f} in {cpu_min:.1f} CPU minutes, state {state_bytes / 2**20:.0f} MiB",
                f"≤ {FLOOR[0]:.2f} / {FLOOR[1]:.2f} in ≤ {LIMIT_MIN} CPU minutes; goal {GOAL[0]} / {GOAL[1]}",
                whole <= FLOOR[0] and tenth <= FLOOR[1] and cpu_min <= LIMIT_MIN,
            ),
            Figure("text-generator, drawing one byte with the mixture", f"{per_byte_ms:.1f} ms", "about 1 ms"),
            Figure(
                "text-generator's network against a plain torch loop that predicts first too",
                f"{ratio:.2f} of its records/s",
                "≥ 0.95",
                ratio >= 0.95,
            ),
        ],
        [
            "Records are speeches (the file cut at its empty lines), 16 an update, in order; the marker that ends a "
            "record stands for the two line ends between speeches, and bits per byte are all bits, those of the "
            "markers too, over the 1,115,394 bytes of the file. The plain loop is the same LSTM with the same steps, "
            "windows and replay, without n-grams on both sides: what n-grams and mixing cost is in the minutes.",
        ],
        {"curve": [[length, round(bits, 1)] for length, bits in curve[::20]], "sample": sample},
    )


def _learned(ours: TextGeneratorLearner, raw: bytes, say: Callable[[str], None]) -> list[tuple[int, float]]:
    """Bytes of the file and bits of the predictions up to the end of each update"""
    curve, length, bits = [(0, 0.0)], 0, 0.0
    for update, batch in enumerate(batches(speeches(raw), RECORDS)):
        report = ours.learn(batch, update_generator(0, update))
        length = min(length + sum((row != 0).sum().item() + 2 for row in batch.x), len(raw))
        bits += report.loss * len(batch) / math.log(2)
        curve.append((length, bits))
        if update % 50 == 49:
            say(f"{length:,} bytes: {bits / length:.3f} bits per byte, its last tenth {_bits_per_byte(curve, 0.9):.3f}")
    return curve


def _bits_per_byte(curve: list[tuple[int, float]], share: float) -> float:
    """From this share of the bytes on"""
    (end, all_bits) = curve[-1]
    start, bits = next(point for point in curve if point[0] >= share * end)
    return (all_bits - bits) / (end - start)


def _sample(model: TextGeneratorModel) -> tuple[str, float]:
    started = time.process_time()
    text = "".join(model.complete("JULIET:\n", 1, Sampling(temperature=0.8, max_bytes=400)))
    return text, 1000 * (time.process_time() - started) / len(text.encode())


def _against_a_plain_loop(raw: bytes) -> tuple[float, float]:
    """CPU seconds of the plain loop and of the learner with its network alone, over the same bytes, turn by turn."""
    ours = TextGeneratorLearner(TextGeneratorOptions(slots=0), (1,), 0, CPU)
    records = list(batches(speeches(raw[: ROUNDS * ROUND_BYTES]), RECORDS))
    plain = _plain(TextGeneratorOptions(slots=0))
    next(plain)
    seconds = [0.0, 0.0]
    for update, batch in enumerate(records):
        stream = torch.tensor(
            [byte for row in batch.x for byte in ("".join(map(chr, row[row != 0].tolist())) + "\0").encode()]
        )
        started = time.process_time()
        plain.send(stream)
        between = time.process_time()
        ours.learn(batch, update_generator(0, update))
        if update:  # the first of both is slow
            seconds[0] += between - started
            seconds[1] += time.process_time() - between
    return seconds[0], seconds[1]


def _plain(options: TextGeneratorOptions) -> Generator[Tensor, Tensor, None]:
    """A coroutine: takes the bytes of an update, gives their losses; what anyone would write with torch alone."""
    torch.manual_seed(0)
    embedding, cell = nn.Embedding(256, options.embedding), nn.LSTM(options.embedding, options.hidden, batch_first=True)
    dropout, out = nn.Dropout(options.dropout), nn.Linear(options.hidden, 256)
    parameters = [p for module in (embedding, cell, out) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0, fused=True)
    width = options.bptt_bytes
    state = (torch.zeros(1, 1, options.hidden), torch.zeros(1, 1, options.hidden))
    history = torch.zeros(1, dtype=torch.int64)
    losses = torch.empty(0)
    while True:
        stream = yield losses
        found = []
        for targets in torch.split(stream, options.step_bytes):
            inputs = torch.cat([history[-1:], targets[:-1]])
            begun = []
            with torch.no_grad():
                for x, y in zip(torch.split(inputs, width), torch.split(targets, width), strict=True):
                    begun.append(state)
                    h, state = cell(embedding(x)[None], state)
                    found.append(F.cross_entropy(out(h[0]), y, reduction="none"))
            count = options.replay_windows if len(history) > width + 1 else 0
            ragged = -len(inputs) % width if count or len(inputs) > width else 0
            x = F.pad(inputs, (0, ragged)).view(len(begun), -1)
            y = F.pad(targets, (0, ragged), value=-1).view_as(x)
            h, c = (torch.cat(part, 1) for part in zip(*begun, strict=True))
            if count:
                places = torch.randint(len(history) - width - 1, (count, 1)) + torch.arange(width + 1)
                x, y = torch.cat([x, history[places][:, :-1]]), torch.cat([y, history[places][:, 1:]])
                h, c = (F.pad(part, (0, 0, 0, count)) for part in (h, c))
            optimizer.zero_grad()
            hidden, _ = cell(embedding(x), (h, c))
            loss = F.cross_entropy(out(dropout(hidden)).flatten(0, 1), y.flatten(), ignore_index=-1)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            history = torch.cat([history, targets])
        losses = torch.cat(found)
