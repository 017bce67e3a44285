"""The classifier on a frozen sentence encoder: embeddings against transformers' own, and a state without the folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from models.learner import Learner, Reference, Rows, Source, update_generator
from models.texts.encoder import BLUEPRINT, TextEncoder, TextEncoderLearner, TextEncoderOptions, transformers
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, answers, cloned, same, texts
from tests.models.encoders import bert_tokenizer, save_encoder

SOME = [
    "",
    "good",
    "good morning to you",
    "увидимся завтра",
    "图书馆在哪里 and many more words than those 🙂 of before",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    save_encoder(path)
    return path


def source(path: Path, **others: Any) -> Source:
    """What a worker hands over."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*.json")}
    return Source("0", load_file(path / "model.safetensors"), files=files | others)


def options(path: Path, **others: Any) -> TextEncoderOptions:
    settings = {"folder": str(path), "replay_slots": 24, "replay_draws": 4, "learning_rate": 0.03, **others}
    return TextEncoderOptions.model_validate(settings)


def a_case(path: Path, **others: Any) -> Case:
    return Case(BLUEPRINT, options(path, **others), *texts(), sources={"folder": source(path)})


def over(path: Path, found: Source, length: int = 64) -> TextEncoderLearner:
    """A learner over what a worker hands over."""
    return TextEncoderLearner(options(path), (length,), SEED, CPU, {"folder": found})


class TestContract(LearnerContract):
    @pytest.fixture(
        params=[{}, {"norm": False, "top_layers": (12, 8), "replay_slots": 0}, {"average": 0.9}],
        ids=["linear", "dense", "averaged"],
    )
    def case(self, folder: Path, request: pytest.FixtureRequest) -> Case:
        return a_case(folder, **request.param)


def padded(some: list[str], length: int = 64) -> Tensor:
    return torch.tensor([[ord(c) for c in text] + [0] * (length - len(text)) for text in some], dtype=torch.int32)


def embeddings(learner: Learner, some: list[str]) -> Tensor:
    assert isinstance(learner.model, TextEncoder)
    return learner.model.embed(padded(some))


@pytest.mark.parametrize("modules", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_embeddings_are_those_of_transformers(folder: Path, modules: tuple[str, ...], pooling: str) -> None:
    """Its own model from the folder, each text alone and without padding, pooled as sentence-transformers does."""
    files = {
        "modules.json": json.dumps([{"type": f"sentence_transformers.models.{name}"} for name in modules]).encode(),
        "1_Pooling/config.json": json.dumps({f"pooling_mode_{pooling}": True, "word_embedding_dimension": 16}).encode(),
    }
    ours = over(folder, source(folder, **files))
    from transformers import BertModel

    reference, tokenizer, expected = BertModel.from_pretrained(folder), bert_tokenizer(), []
    for text in SOME:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():  # 48 positions, of which the last is [SEP]
            states = reference(torch.tensor([[*ids[:-1][:47], 3]])).last_hidden_state[0]
        pooled = states[0] if pooling == "cls_token" else states.mean(0)
        expected.append(F.normalize(pooled, dim=0) if "Normalize" in modules else pooled)
    torch.testing.assert_close(embeddings(ours, SOME), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_an_embedding_depends_on_its_own_text_alone(folder: Path) -> None:
    """Its padding does to the last bit; how a product of matrices is summed may differ with the number of rows."""
    ours = a_case(folder).learner()
    together = embeddings(ours, SOME)
    for row, text in enumerate(SOME):
        torch.testing.assert_close(embeddings(ours, [text])[0], together[row], rtol=0, atol=2e-6)
        assert torch.equal(embeddings(ours, [text] * 2), embeddings(ours, [text, text, SOME[-1]])[:2])


def test_it_stays_in_evaluation_mode(folder: Path) -> None:
    ours = a_case(folder).learner()
    before = embeddings(ours, SOME)
    assert isinstance(ours.model, TextEncoder)
    ours.model.train()
    assert torch.equal(embeddings(ours, SOME), before)


def test_a_restart_and_a_sampler_need_no_folder(folder: Path) -> None:
    settings = options(folder)
    one = a_case(folder)
    ours = one.learned()
    state = cloned(ours.capture())
    settings = settings.model_copy(update={"folder": "/nowhere"})
    restored = replace(one, options=settings).restored(state, SEED + 1)
    assert same(restored.capture(), state)
    served = BLUEPRINT.model(settings, (32,), state.meta)
    served.load_state_dict(state.serving)
    assert torch.equal(answers(served, one.x[:8], []), answers(ours.model, one.x[:8], []))
    assert one.learn(restored, range(6, 12)) == one.learn(ours, range(6, 12))


def test_the_encoder_is_given_once_and_never_changes(folder: Path) -> None:
    one = a_case(folder)
    ours = one.learner()
    before = cloned(ours.capture()).serving
    assert {"files/config.json", "files/tokenizer.json", "encoder/embeddings.word_embeddings.weight"} <= set(before)
    assert not [name for name in before if "pooler" in name]
    one.learn(ours, range(6))
    for name, value in ours.capture().serving.items():
        if name.startswith(("files/", "encoder/")):
            assert isinstance(value, Rows)
            assert value.changed is not None
            assert not len(value.changed)
            assert torch.equal(value.tensor, before[name])  # type: ignore[arg-type]
    assert not any("encoder" in name for name in ours.capture().training)


def test_it_learns_and_replays_embeddings(folder: Path) -> None:
    one = a_case(folder, replay_draws=16)
    ours = one.learner()
    for update in range(40):
        report = ours.learn(one.batch(16 * update, 16), update_generator(SEED, update))
    assert report.predicted is not None
    assert sum(a == b for a, b in zip(report.predicted, one.labels[:16], strict=True)) >= 14
    memory = ours.capture().training["memory/x"]
    assert isinstance(memory, Rows)
    assert (memory.tensor.shape, memory.tensor.dtype) == ((24, 16), torch.float32)


def harmed(path: Path, change: Mapping[str, Any], **others: bytes | None) -> Source:
    found = source(path)
    config = json.loads(found.files["config.json"]) | change
    files = {**found.files, "config.json": json.dumps(config).encode(), **others}
    return Source("0", found.tensors, files={name: content for name, content in files.items() if content is not None})


@pytest.mark.parametrize(
    ("change", "others", "reason"),
    [
        ({}, {"tokenizer.json": None}, "no tokenizer.json"),
        ({}, {"tokenizer.json": b"{}"}, "tokenizer.json cannot be read"),
        ({"model_type": "nonsense"}, {}, "config.json is of model_type 'nonsense'; only albert, "),
        ({"hidden_size": "wide"}, {}, "config.json describes no encoder"),
        ({"hidden_size": 8}, {}, r"embeddings.word_embeddings.weight is \(.*16\), not \(.*8\)"),
        ({"num_hidden_layers": 3}, {}, r"has no encoder.layer.2"),
        ({"model_type": "t5"}, {}, "."),
        ({}, {"modules.json": b'[{"type": "sentence_transformers.models.Dense"}]'}, "names Dense"),
        ({}, {"1_Pooling/config.json": b'{"pooling_mode_max_tokens": true}'}, "pooling_mode_max_tokens"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    folder: Path, change: Mapping[str, Any], others: dict[str, bytes | None], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        over(folder, harmed(folder, change, **others), 8)


def test_weights_and_the_extra_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BLUEPRINT.sources(options(folder)) == {"folder": Reference("folder", str(folder))}
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        over(folder, Source("0", files=source(folder).files))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"headrace\[text\]"):
        over(folder, source(folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # These ask the hub for a part of theirs, or for code.
        ({"model_type": "timm_wrapper"}, "only albert, "),
        ({"model_type": "timm_backbone", "backbone": "resnet50", "use_pretrained_backbone": True}, "only albert, "),
        ({"model_type": "detr", "backbone": "resnet50", "use_timm_backbone": True}, "only albert, "),
        ({"model_type": "encoder-decoder"}, "only albert, "),
        ({"model_type": None}, "only albert, "),
        ({"model_type": ["bert"]}, "only albert, "),
        # These are built for ever.
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is more than any encoder has"),
        ({"hidden_size": 10**12}, "more than any encoder has"),
        ({"vocab_size": 1e300}, "more than any encoder has"),
    ],
)
def test_a_stored_configuration_asks_nobody_and_for_nothing(
    folder: Path, change: Mapping[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda _, address: asked.append(address))
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address))
    state = a_case(folder).learner().capture()
    files = harmed(folder, change).files
    stored = {**state.serving, "files/config.json": torch.tensor(list(files["config.json"]), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=reason):
        TextEncoder(options(folder), ()).load_state_dict(stored)
    assert asked == []


def test_the_library_is_offline_wherever_it_was_imported_first() -> None:
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = False
    assert transformers().utils.hub.is_offline_mode()


def test_code_of_the_folder_is_never_run(folder: Path) -> None:
    found = harmed(folder, {"auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}})
    ours = over(folder, found)
    assert torch.equal(embeddings(ours, SOME), embeddings(a_case(folder).learner(), SOME))


def test_weights_of_a_larger_model_are_found_behind_their_prefix(folder: Path) -> None:
    found = source(folder)
    tensors = {f"bert.{name}": value for name, value in found.tensors.items()} | {"cls.bias": torch.zeros(3)}
    ours = over(folder, Source("0", tensors, files=found.files))
    assert torch.equal(embeddings(ours, SOME), embeddings(a_case(folder).learner(), SOME))
