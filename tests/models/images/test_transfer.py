"""Transfer: the contract over a version and over a file, what is frozen and what learns, the loss of the source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from models.classifier import ClassifierLearner
from models.images.backbone import torchvision_network
from models.images.transfer import BLUEPRINT, ImageTransferOptions, blocks
from models.learner import Learner, Reference, Rows, Source, State, module_on, update_generator
from models.registry import BUILTIN
from tests.device import CPU
from tests.models.contract import SEED, Case, LearnerContract, cloned, digits, same

NAME = "shufflenet_v2_x0_5"  # torchvision's smallest
SMALL: Mapping[str, Any] = {"source": "before", "top_layers": (12,), "replay_slots": 24, "replay_draws": 4}
SAMPLE: Mapping[str, Any] = {"source_loss": "sample", "source_slots": 10, "source_draws": 3}


@cache
def version() -> Source:
    """A version of an image-classifier that has learned digits below five."""
    blueprint = BUILTIN["image-classifier"]
    settings = {"width": 8, "hidden": 16, "replay_slots": 40, "replay_draws": 8, "learning_rate": 4e-3}
    rows = [row for row, label in enumerate(digits()[1]) if label < "5"]
    x, labels = digits()[0][rows], [digits()[1][row] for row in rows]
    case = Case(blueprint, blueprint.options.model_validate(settings), x, labels)
    state = cloned(case.learned(30).capture())
    serving = {name: value for name, value in state.serving.items() if isinstance(value, Tensor)}
    training = {name: value for name, value in state.training.items() if isinstance(value, Tensor)}
    return Source("digest", serving, training, {}, "image-classifier", settings, (1, 8, 8), state.meta)


@cache
def file() -> Source:
    return Source("digest", module_on(lambda: torchvision_network(NAME, num_classes=7), CPU).state_dict())


def started(**options: object) -> Case:
    made = ImageTransferOptions.model_validate({**SMALL, **options})
    return Case(BLUEPRINT, made, *digits(), sources={"source": version()})


def started_from_file(**options: object) -> Case:
    from_file = {**SMALL, "source": None, "architecture": NAME, "weights": "w.pth", **options}
    generator = torch.Generator().manual_seed(0)
    records = {
        "x": torch.randint(256, (9, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "y": torch.arange(9) % 7,
    }
    sources = {"weights": file(), "source_records": Source("digest", records)}
    return Case(BLUEPRINT, ImageTransferOptions.model_validate(from_file), *digits(), sources=sources)


CASES = {
    "frozen": started(layers=("0", "2"), grid=2),
    "unfrozen from a layer on, source sample": started(unfreeze_from="blocks.1", **SAMPLE),
    "unfrozen gradually, averaged, warped, half": started(
        unfreeze_every_updates=2, average=0.9, augment={"shift_pixels": 1}, augment_incoming=False, half=True, steps=2
    ),
    "unfrozen gradually, pulled back, half": started(unfreeze_every_updates=4, source_loss="l2-sp", half=True),
}


class TestContract(LearnerContract):
    @pytest.fixture(params=list(CASES.values()), ids=list(CASES))
    def case(self, request: pytest.FixtureRequest) -> Case:
        assert isinstance(request.param, Case)
        return request.param


def backbone_of(learner: Learner) -> dict[str, Tensor]:
    """Copies of the backbone's weights."""
    assert isinstance(learner, ClassifierLearner)
    return {name: value.clone() for name, value in learner.model.backbone.network.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name].float(), after[name].float())}


def test_a_frozen_backbone_is_given_once_and_never_again() -> None:
    one = started()
    ours = one.learner()
    names = [f"backbone.network.{name}" for name in backbone_of(ours)]
    first = ours.capture().serving
    assert all(isinstance(first[name], Rows) and first[name].changed is None for name in names)  # type: ignore[union-attr]
    one.learn(ours, range(3))
    later = ours.capture().serving
    assert all(len(later[name].changed) == 0 for name in names)  # type: ignore[union-attr, arg-type]
    assert not isinstance(later["head.weight"], Rows)
    restored = one.restored(cloned(ours.capture()))
    assert all(len(restored.capture().serving[name].changed) == 0 for name in names)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_restart_needs_no_source(case: Case) -> None:
    ours = case.learned(6)
    state = cloned(ours.capture())
    restored = case.restored(state, SEED + 1)
    assert same(restored.capture(), state)
    assert case.learn(restored, range(6, 12)) == case.learn(ours, range(6, 12))
    assert same(restored.capture(), ours.capture())


def test_only_what_is_unfrozen_learns() -> None:
    for case, learns in [
        (started(), set()),
        (started(unfreeze_from="blocks.1"), {"blocks.1", "blocks.2", "dense"}),
        (started(unfreeze_from="dense"), {"dense"}),
    ]:
        ours = case.learner()
        before = backbone_of(ours)
        case.learn(ours, range(3))
        moved = changed(before, backbone_of(ours))
        assert moved == {name for name in before if name.startswith(tuple(f"{part}." for part in learns))}


def test_one_more_block_from_the_top_is_unfrozen_every_so_many_updates() -> None:
    case = started(unfreeze_every_updates=2)
    ours = case.learner()
    assert isinstance(ours, ClassifierLearner)
    order = list(reversed(blocks(ours.model.backbone.network)))
    assert order == ["dense", "blocks.2", "blocks.1", "blocks.0"]
    for update in range(10):
        before = backbone_of(ours)
        case.learn(ours, range(update, update + 1))
        moved = {name for block in order for name in changed(before, backbone_of(ours)) if name.startswith(block)}
        assert {block for block in order if any(name.startswith(block) for name in moved)} == set(order[: update // 2])


def test_blocks_are_children_and_where_they_are_few_the_largest_is_opened() -> None:
    from torchvision.models import VisionTransformer

    network = module_on(lambda: torchvision_network(NAME), CPU)
    assert list(blocks(network)) == ["conv1", "stage2", "stage3", "stage4", "conv5", "fc"]
    vit = module_on(lambda: VisionTransformer(32, 16, 3, 2, 8, 8), CPU)
    vit.heads = torch.nn.Identity()
    layers = [f"encoder.layers.encoder_layer_{number}" for number in range(3)]
    assert list(blocks(vit)) == ["class_token", "conv_proj", "encoder.pos_embedding", *layers, "encoder.ln"]
    assert [name for entries in blocks(vit).values() for name in entries] == list(vit.state_dict())


def test_the_backbone_has_a_learning_rate_of_its_own() -> None:
    def steps(**options: object) -> tuple[float, float]:
        case = started(unfreeze_from="dense", weight_decay=0.0, replay_slots=0, **options)  # an update is one step
        ours = case.learner()
        assert isinstance(ours, ClassifierLearner)
        before = ours.model.backbone.network.get_parameter("dense.bias").clone()
        case.learn(ours, range(2))  # the head begins at zero: what is below it learns from the second update on
        moved = (ours.model.backbone.network.get_parameter("dense.bias") - before).abs().max().item()
        return moved, ours.model.head.bias.abs().max().item()

    slow, fast = steps(backbone_learning_rate=1e-5), steps(backbone_learning_rate=1e-3)
    assert fast[0] == pytest.approx(100 * slow[0], rel=0.02)
    assert fast[1] == pytest.approx(slow[1], rel=0.05)


def gradients(case: Case, updates: int = 4) -> dict[str, Tensor]:
    """Of the next update, as the optimisers see them."""
    ours = case.learned(updates)
    assert isinstance(ours, ClassifierLearner)
    found: dict[str, Tensor] = {}

    def note() -> None:
        found.update({n: p.grad.clone() for n, p in ours.model.named_parameters() if p.grad is not None})

    ours._step = note  # type: ignore[method-assign]
    case.learn(ours, range(updates, updates + 1))
    return found


def test_the_pull_to_the_source_is_the_distance_to_where_it_began() -> None:
    options: dict[str, Any] = {"unfreeze_from": "blocks.2", "backbone_learning_rate": 1e-3, "replay_draws": 0}
    pulled = started(source_loss="l2-sp", target_weight=3.0, **options)
    ours = pulled.learned(4)
    assert isinstance(ours, ClassifierLearner)
    state = cloned(ours.capture())
    network = ours.model.backbone.network
    x, labels = pulled.batch(32).x, pulled.batch(32).labels
    y = torch.tensor([ours.model.classes.index(str(label)) for label in labels])
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    start = {name: version().tensors[name] for name in parameters}
    assert {name: state.training[f"start/{name}"] for name in parameters}.keys() == start.keys()
    loss = 3.0 * F.cross_entropy(ours.model(x), y)
    expected = torch.autograd.grad(loss, list(parameters.values()))
    found = gradients(pulled)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        pull = parameter.detach() - start[name]
        assert pull.abs().max() > 0
        torch.testing.assert_close(found[f"backbone.network.{name}"], gradient + pull, rtol=1e-4, atol=1e-6)


def test_a_sample_of_the_source_keeps_what_it_knew() -> None:
    """Trained far from its source, the old head on the new features still knows the old task."""

    def accuracy(**options: object) -> float:
        case = started(unfreeze_from="blocks.0", backbone_learning_rate=2e-2, learning_rate=1e-2, **options)
        rows = [row for row, label in enumerate(case.labels) if label >= "5"]
        others = Case(
            case.blueprint, case.options, 255 - case.x[rows], [case.labels[r] for r in rows], True, case.sources
        )
        ours = others.learned(40)
        assert isinstance(ours, ClassifierLearner)
        known = [row for row, label in enumerate(case.labels) if label < "5"][-300:]
        source = version()
        with torch.no_grad():
            features = ours.model.backbone(case.x[known] / 255)
            chosen = F.linear(features, source.tensors["head.weight"], source.tensors["head.bias"]).argmax(1)
        hits = [source.meta["classes"][k] == case.labels[row] for k, row in zip(chosen.tolist(), known, strict=True)]
        return float(sum(hits) / len(hits))

    forgotten, kept = accuracy(), accuracy(source_loss="sample", source_slots=40, source_draws=16)
    assert kept > 0.75 > forgotten + 0.2


def test_the_sources_records_and_head_come_with_the_version_or_with_a_file() -> None:
    ours = started(unfreeze_from="dense", **SAMPLE).learner()
    training = ours.capture().training
    memory = version().training["memory/x"]
    assert training["source/x"].tensor.shape == (10, 1, 8, 8)  # type: ignore[union-attr]
    assert torch.equal(training["source/x"].tensor[0], memory[0])  # type: ignore[union-attr]
    assert torch.equal(training["source/head.weight"].tensor, version().tensors["head.weight"])  # type: ignore[union-attr]

    case = started_from_file(unfreeze_from="conv5", source_records="r.safetensors", half=True, **SAMPLE)
    assert BLUEPRINT.sources(case.options) == {
        "weights": Reference("file", "w.pth"),
        "source_records": Reference("file", "r.safetensors"),
    }
    theirs = case.learned(2)
    state = cloned(theirs.capture())
    assert state.training["source/head.weight"].shape == (7, 1024)  # type: ignore[union-attr]
    assert state.training["source/y"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]  # type: ignore[union-attr]
    assert state.serving["backbone.network.conv1.0.weight"].dtype == torch.bfloat16  # type: ignore[union-attr]
    assert state.serving["backbone.network.conv5.0.weight"].dtype == torch.float32  # type: ignore[union-attr]
    restored = case.restored(state)
    assert case.learn(restored, range(2, 4)) == case.learn(theirs, range(2, 4))
    served = case.blueprint.model(case.options, (1, 8, 8), state.meta)
    served.load_state_dict(state.serving)
    ours = case.learned(2)
    assert torch.equal(served.classify(case.x[:4]), ours.model.classify(case.x[:4]))  # type: ignore[attr-defined]


def test_frozen_norms_keep_their_statistics() -> None:
    case = started_from_file(unfreeze_from="conv5")
    ours = case.learner()
    before = backbone_of(ours)
    case.learn(ours, range(3))
    moved = changed(before, backbone_of(ours))
    assert moved == {"conv5.0.weight", "conv5.1.weight", "conv5.1.bias"}


@pytest.mark.parametrize("unfreeze_every_updates", [0, 4], ids=["frozen", "unfrozen gradually"])
def test_it_learns_all_digits_from_what_half_of_them_taught(unfreeze_every_updates: int) -> None:
    rates = {"learning_rate": 1e-2, "backbone_learning_rate": 2e-3}
    case = started(top_layers=(32,), unfreeze_every_updates=unfreeze_every_updates, replay_slots=0, **rates)
    ours = case.learner()
    for update in range(60):
        ours.learn(case.batch(16 * update, 16), update_generator(SEED, update))
    assert isinstance(ours, ClassifierLearner)
    chosen = ours.model.classify(case.x[1200:]).argmax(1).tolist()
    hits = sum(ours.model.classes[k] == y for k, y in zip(chosen, case.labels[1200:], strict=True)) / 597
    assert hits > (0.7 if unfreeze_every_updates else 0.6)


def test_features_of_named_layers_are_their_maps_on_a_grid() -> None:
    ours = started(layers=("0", "2"), grid=2, top_layers=()).learner()
    assert isinstance(ours, ClassifierLearner)
    x = digits()[0][:3]
    shallow, deep = ours.model.backbone.maps(x / 255)
    assert (shallow.shape, deep.shape) == ((3, 8, 8, 8), (3, 16, 4, 4))
    expected = torch.cat(
        [F.interpolate(m, (2, 2), mode="bilinear", antialias=True).flatten(1) for m in (shallow, deep)], 1
    )
    torch.testing.assert_close(ours.model.features(x), F.layer_norm(expected, (8 * 4 + 16 * 4,)))


def test_options_that_contradict_each_other_are_refused() -> None:
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"unfreeze_from": "dense", "unfreeze_every_updates": 5}, "Choose one"),
        ({"source_loss": "l2-sp"}, "a constant while nothing is unfrozen"),
        ({"source_records": "r.safetensors"}, "source_records are for"),
        (
            {**SAMPLE, "unfreeze_from": "a", "source": None, "architecture": NAME, "weights": "w.pth"},
            "needs source_records",
        ),
    ]
    for given, message in contradictions:
        with pytest.raises(ValidationError, match=message):
            ImageTransferOptions.model_validate({**SMALL, **given})


def test_sources_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'blocks\.9' is no module with weights.*blocks\.0"):
        started(unfreeze_from="blocks.9").learner()
    case = started(unfreeze_from="dense", **SAMPLE)
    source = version()
    bare = Source("d", source.tensors, {}, {}, source.learner, source.options, source.shape, source.meta)
    with pytest.raises(ValueError, match="no replay memory in this version"):
        Case(case.blueprint, case.options, case.x, case.labels, True, {"source": bare}).learner()
    case = started_from_file(unfreeze_from="conv5", source_records="r.safetensors", **SAMPLE)
    x = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    for records, message in [
        ({"x": x}, "must hold x"),
        ({"x": x.float(), "y": torch.zeros(3)}, "must hold x"),
        ({"x": x, "y": torch.tensor([0, 1, 7])}, "classes from 0 to 7, the source's head 7"),
    ]:
        sources = {**case.sources, "source_records": Source("d", records)}
        with pytest.raises(ValueError, match=message):
            Case(case.blueprint, case.options, case.x, case.labels, True, sources).learner()
    headless = {name: tensor for name, tensor in file().tensors.items() if not name.startswith("fc.")}
    sources = {**case.sources, "weights": Source("d", headless)}
    with pytest.raises(ValueError, match=r"no head \(fc\.\*\)"):
        Case(case.blueprint, case.options, case.x, case.labels, True, sources).learner()


def test_a_state_that_lacks_the_sources_sample_is_refused() -> None:
    case = started(unfreeze_from="dense", **SAMPLE)
    state = cloned(case.learned(2).capture())
    training = {name: value for name, value in state.training.items() if name != "source/x"}
    with pytest.raises(ValueError, match="source/x"):
        case.learner().restore(State(state.serving, training, state.meta))


def test_an_average_follows_what_is_unfrozen_from_then_on() -> None:
    case = started(unfreeze_every_updates=2, average=0.3, replay_slots=0)  # an update is one step
    ours = case.learner()
    assert isinstance(ours, ClassifierLearner)
    mean = {name: value.clone() for name, value in ours.model.state_dict().items() if not name.startswith("head")}
    before = backbone_of(ours)
    for update in range(6):
        case.learn(ours, range(update, update + 1))
        decay = min(0.3, (1 + update) / (10 + update))
        raw = ours._learning.state_dict()
        mean = {name: decay * value + (1 - decay) * raw[name] for name, value in mean.items()}
    for name, value in mean.items():
        torch.testing.assert_close(ours.model.state_dict()[name], value)
    assert changed(before, backbone_of(ours))
    assert not any(p.requires_grad for p in ours.model.parameters())
