"""Text classifier on a frozen sentence encoder of transformers or sentence-transformers, with a head that learns.

    tokens → encoder (frozen) → pooling over tokens → LayerNorm → dense, ReLU … → head

The encoder never changes, so a text's embedding is computed once: the replay memory holds embeddings, not texts, and an
update runs the encoder on the incoming records alone. A frozen encoder is in the state, with its configuration and its
tokeniser, as rows that never change: any process rebuilds it without the folder, and it is stored once.

Code comes from transformers alone: of a folder's own, none is run. A text is padded to the next multiple of `STEP`
tokens, and goes through the encoder with others of that length alone: its padding is a function of the text.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import ClassifierLearner, ClassifierNetwork, ClassifierOptions
from models.learner import (
    NOTHING,
    Batch,
    Blueprint,
    Frozen,
    Reference,
    Report,
    Rows,
    Source,
    Start,
    State,
    copy_into,
    module_on,
    structural,
)
from models.network import seeded
from models.texts.gru import strings
from models.wrapped import WrappedClassifier

STEP = 8  # tokens
CONFIG, TOKENIZER, MODULES, POOLING = "config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"
FILES, WEIGHTS = "files/", "encoder/"  # in the state's names
#: architectures that may be built: text in, one state a token out, all of their code in transformers
ARCHITECTURES = frozenset(
    ("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
     "electra", "ernie", "eurobert", "ibert", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert",
     "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta",
     "xlm-roberta-xl", "xmod")
)  # fmt: skip
MOST = 1 << 24  # of any number of a configuration: a width or a vocabulary
MAX_LAYERS = 256
#: of a configuration, what is not heard: the folder's own code, other libraries, another type than float32
FOREIGN = ("auto_map", "quantization_config", "torch_dtype", "dtype")
#: of sentence-transformers: what this learner does as well
LISTED_MODULES = ("Transformer", "Pooling", "Normalize")


class TextEncoderOptions(ClassifierOptions):
    """`folder` has config.json, tokenizer.json and model.safetensors; it is read where there is no version yet."""

    folder: str = Field(min_length=1)
    max_tokens: int = structural(128, ge=2)
    norm: bool = structural(True)  # LayerNorm of the embedding
    top_layers: tuple[int, ...] = structural(())  # units of dense layers between embedding and head


def transformers() -> Any:
    """Imports the library, offline: all that an encoder needs is in its files.

    Raises:
        ValueError: the extra is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read at the first import
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
        constants.HF_HUB_OFFLINE = True
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError("text-encoder needs transformers: pip install 'headrace[text]'.") from error


def _check_settings(settings: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: it names an architecture that is not listed, or a size that no encoder has.
    """
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        listed = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"{CONFIG} is of model_type {kind!r}; only {listed} are known.")
    for key, value in settings.items():
        if isinstance(value, int | float) and abs(value) > (MAX_LAYERS if "layers" in key else MOST):
            raise ValueError(f"{CONFIG}: {key} = {value} is more than any encoder has.")


class Encoder(nn.Module):
    """A sentence encoder as its files describe it; its weights are to be loaded.

    Raises:
        ValueError: a file is missing, or describes what this is not.
    """

    def __init__(self, files: Mapping[str, bytes], max_tokens: int) -> None:
        super().__init__()
        for name in (CONFIG, TOKENIZER):
            if name not in files:
                raise ValueError(f"the folder has no {name}.")
        library, tokenizers = transformers(), importlib.import_module("tokenizers")
        settings = json.loads(files[CONFIG])
        _check_settings(settings)
        for key in FOREIGN:
            settings.pop(key, None)
        modules = [module["type"].rsplit(".", 1)[-1] for module in json.loads(files.get(MODULES, b"[]"))]
        if unknown := [name for name in modules if name not in LISTED_MODULES]:
            raise ValueError(f"{MODULES} names {unknown[0]}; only {', '.join(LISTED_MODULES)} are known.")
        pooling = json.loads(files.get(POOLING, b"{}"))
        asked = sorted(key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True)
        if asked not in ([], ["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
            raise ValueError(f"{POOLING} asks for {', '.join(asked)}; only the mean or the first token is known.")
        self.first_token = asked == ["pooling_mode_cls_token"]
        self.unit_norm = "Normalize" in modules
        try:
            config = library.AutoConfig.for_model(settings.pop("model_type"), **settings)
            # "eager": the one attention that every architecture has, and no kernel that is chosen by shape.
            self.body = library.AutoModel.from_config(
                config, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32
            )
        except Exception as error:  # the library's code with a user's values: anything
            raise ValueError(f"{CONFIG} describes no encoder that transformers can build: {error}") from error
        if isinstance(getattr(self.body, "pooler", None), nn.Module):
            self.body.pooler = None  # answers for one sentence pair task of its training
        self.prefix = f"{self.body.base_model_prefix}."
        self.width: int = config.hidden_size
        positions: int = getattr(config, "max_position_embeddings", max_tokens)
        stated = json.loads(files.get("tokenizer_config.json", b"{}")).get("model_max_length", positions)
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode())
        except Exception as error:  # what the library raises has no other class
            raise ValueError(f"{TOKENIZER} cannot be read: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(int(min(max_tokens, positions, stated)))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """It stays in evaluation mode: dropout would draw."""
        return super().train(False)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Weights of model.safetensors, with or without the architecture's prefix; heads of other tasks are left out.

        Raises:
            ValueError: a weight is missing or of another shape.
        """
        found = {name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()}
        for name, value in self.body.named_parameters():
            if name not in found:
                raise ValueError(f"model.safetensors has no {name}.")
            if found[name].shape != value.shape:
                shapes = f"{tuple(found[name].shape)}, not {tuple(value.shape)}"
                raise ValueError(f"model.safetensors: {name} is {shapes} as {CONFIG} says.")
            value.data.copy_(found[name])

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts → embeddings (B, D) float32 on its device."""
        device = next(self.body.parameters()).device
        rows = [found.ids for found in self.tokenizer.encode_batch(list(texts))]
        sizes = [-len(row) // STEP * -STEP or STEP for row in rows]
        result = torch.zeros(len(rows), self.width, device=device)
        for size in dict.fromkeys(sizes):
            chosen = [number for number, other in enumerate(sizes) if other == size]
            ids = torch.tensor([rows[number] + [0] * (size - len(rows[number])) for number in chosen], device=device)
            counts = torch.tensor([len(rows[number]) for number in chosen], device=device)
            present = (torch.arange(size, device=device) < counts[:, None]).long()  # (b, T)
            states = self.body(input_ids=ids, attention_mask=present).last_hidden_state  # (b, T, D)
            mean = (states * present[:, :, None]).sum(1) / counts.clamp_min(1)[:, None]
            result[chosen] = states[:, 0] if self.first_token else mean
        return F.normalize(result, dim=1) if self.unit_norm else result


class Top(ClassifierNetwork):
    """What learns: LayerNorm, dense layers and the head, on embeddings (B, D)."""

    def __init__(self, options: TextEncoderOptions, width: int, classes: Sequence[str]) -> None:
        sizes = (width, *options.top_layers)
        super().__init__(sizes[-1], classes)
        self.norm = nn.LayerNorm(width) if options.norm else nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x)
        for layer in self.layers:
            found = torch.relu(layer(found))
        return found


class TextEncoder(nn.Module):
    """What is served. `equip` builds its parts from the files of a folder or of a state; before, it has none."""

    encoder: Encoder
    top: ClassifierNetwork | None

    def __init__(self, options: TextEncoderOptions, classes: Sequence[str]) -> None:
        super().__init__()
        self._options = options
        self.classes = list(classes)
        self.top = None
        self.files: dict[str, Tensor] = {}  # uint8

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """x (B, L) int32 → probabilities (B, K) float32."""
        return torch.zeros(len(x), 0) if self.top is None else self.top.classify(self.embed(x))

    def features(self, x: Tensor) -> Tensor:
        """x (B, L) int32 → (B, D) embeddings, as the replay memory holds them."""
        return self.embed(x)

    def embed(self, x: Tensor) -> Tensor:
        """x (B, L) int32 → embeddings (B, D), on the encoder's device."""
        found: Tensor = self.encoder(strings(x))
        return found

    def equip(self, files: Mapping[str, bytes], device: torch.device, seed: int) -> Top:
        """Builds the encoder, with weights that are to be loaded, and what is above it.

        Raises:
            ValueError: see `Encoder`.
        """
        self.encoder = module_on(lambda: Encoder(files, self._options.max_tokens), device)
        self.files = {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()}
        self.top = top = seeded(lambda: Top(self._options, self.encoder.width, self.classes), seed, device)
        self.classes = top.classes  # one list, which grows
        return top

    def open_folder(self, source: Source, device: torch.device, seed: int) -> Top:
        """As `equip`, with the weights of a folder in the encoder.

        Raises:
            ValueError: a file is missing, or does not fit the others.
        """
        if not source.tensors:
            raise ValueError("the folder has no model.safetensors.")
        kept = (CONFIG, TOKENIZER, "tokenizer_config.json", MODULES, POOLING)
        top = self.equip({name: source.files[name] for name in kept if name in source.files}, device, seed)
        self.encoder.load(source.tensors)
        try:
            self.encoder(["", "a " * self._options.max_tokens])
        except Exception as error:  # the library's code with a user's files: anything
            raise ValueError(f"the folder's model and tokeniser do not fit each other: {error!r}") from error
        return top

    def frozen(self) -> dict[str, Tensor]:
        """What never changes: files/… and encoder/…"""
        weights = {WEIGHTS + name: value.detach() for name, value in self.encoder.body.named_parameters()}
        return {FILES + name: value for name, value in self.files.items()} | weights

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Rebuilds what `equip` builds from files, and takes all weights.

        Raises:
            ValueError: a tensor is missing or does not fit.
        """
        top = self.equip(files_of(state_dict), torch.device("cpu"), 0)
        copy_into({**self.frozen(), **top.state_dict()}, {"sharpness": torch.ones(1), **state_dict})


def files_of(state: Mapping[str, Tensor | Rows]) -> dict[str, bytes]:
    """The small files in a state.

    Raises:
        ValueError: one is missing, or is no row of bytes.
    """
    found = {}
    for name in (CONFIG, TOKENIZER):
        if FILES + name not in state:
            raise ValueError(f"{FILES}{name} is missing in the stored state.")
    for name, value in state.items():
        if name.startswith(FILES):
            tensor = value.tensor if isinstance(value, Rows) else value
            if (tensor.dtype, tensor.dim()) != (torch.uint8, 1):
                raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype} in the stored state, not bytes.")
            found[name.removeprefix(FILES)] = bytes(tensor.cpu().numpy())
    return found


class TextEncoderLearner(WrappedClassifier[ClassifierLearner[Top]]):
    """A learner of texts: embeds them, and hands the embeddings to `inner`, a classifier."""

    def __init__(
        self,
        options: TextEncoderOptions,
        shape: tuple[int, ...],
        seed: int,
        device: torch.device,
        start: Start = NOTHING,
    ) -> None:
        self.model = TextEncoder(options, ())
        if isinstance(start, State):
            top = self.model.equip(files_of(start.serving), device, seed)
        else:
            top = self.model.open_folder(start["folder"], device, seed)
        memory = options.memory((self.model.encoder.width,), torch.float32, device)
        super().__init__(ClassifierLearner(top, options, memory, device))
        self.model.top = self.inner.model  # the average, where there is one
        self._frozen = Frozen()

    def learn(self, batch: Batch, rng: torch.Generator) -> Report:
        return self.inner.learn(replace(batch, x=self.model.embed(batch.x)), rng)

    def capture(self) -> State:
        state = self.inner.capture()
        return State({**self._frozen.rows(self.model.frozen()), **state.serving}, state.training, state.meta)

    def restore(self, state: State) -> None:
        frozen = {name: value for name, value in state.serving.items() if name.startswith((FILES, WEIGHTS))}
        copy_into(self.model.frozen(), frozen)
        rest = {name: value for name, value in state.serving.items() if name not in frozen}
        self.inner.restore(State(rest, state.training, state.meta))
        self._frozen.restored()


def model(options: TextEncoderOptions, shape: tuple[int, ...], meta: Mapping[str, Any]) -> TextEncoder:
    return TextEncoder(options, meta["classes"]).eval()


BLUEPRINT = Blueprint(
    TextEncoderOptions,
    TextEncoderLearner,
    model,
    "text",
    lambda options: {"folder": Reference("folder", options.folder)},
    started=TextEncoderLearner,
)
