"""CLIP as an ordinary classifier: the texts of its classes are embedded once and become the last layer.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; with a bias: Zhai et al.,
"Sigmoid Loss for Language Image Pre-Training", 2023.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

# isort: split
from edgecls.models import torchvision_operators  # noqa: F401 (must come before open_clip, which imports torchvision)

# isort: split
import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transform import PreprocessCfg
from timm.utils.model import reparameterize_model

from edgecls.models.checkpoint import Checkpoint, StateDict
from edgecls.models.download import fetch_hub_weights, fetch_weights, torch_hub_folder
from edgecls.models.matching import Differences, load_by_name, mismatch
from edgecls.models.preprocess_override import KnownPreprocess
from edgecls.runtime.errors import InputError
from edgecls.runtime.labels import Labels

_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS = frozenset({".pth", ".pt", ".th", ".bin", ".ckpt", ".safetensors"})
_MODES = {"shortest": "shorter", "squash": "squash"}
"""open_clip's `resize_mode` to ours."""
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")
"""What old checkpoints hold beside their weights."""


class ZeroShotClassifier(nn.Module):
    """An image tower whose features, normalised, meet the embedded texts in one linear layer."""

    def __init__(self, visual: nn.Module, embeddings: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Takes float32 embeddings `[classes, width]`, already scaled, and SigLIP's bias, one number for all."""
        super().__init__()
        self.visual = visual
        self.head = nn.Linear(embeddings.shape[1], embeddings.shape[0], bias=bias is not None)
        self.head.weight = nn.Parameter(embeddings)
        if bias is not None:
            self.head.bias = nn.Parameter(bias.reshape(1).repeat(len(embeddings)))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Float32 `[batch, 3, height, width]`, normalised, to logits `[batch, classes]`."""
        features = self.visual(pictures)
        logits: torch.Tensor = self.head(features / features.norm(dim=-1, keepdim=True))
        return logits


@dataclass(frozen=True)
class ClipModel:
    """One of open_clip's models, before any weights are in it."""

    model: str
    """As it was asked for: `clip:ViT-B-32`, `clip:ViT-B-32/laion2b_s34b_b79k`, `clip:FILE`."""
    name: str
    """Short: `ViT-B-32`; the stem of a file."""
    identifier: str
    """As open_clip takes it: `ViT-B-32`, `local-dir:FOLDER`."""
    config: Mapping[str, Any]
    """open_clip's `model_cfg`."""
    preprocess_configs: tuple[Mapping[str, Any], ...]
    """open_clip's description of the input of every set of weights that may be meant."""
    tag: str | None = None
    """Which of open_clip's sets of weights."""
    file: Path | None = None
    """The weights that MODEL itself is."""

    @classmethod
    def find(cls, model: str) -> ClipModel:
        """Finds what `clip:NAME`, `clip:NAME/TAG` or `clip:FILE` means.

        Raises:
            InputError: open_clip has no such architecture or weights, or nothing says which architecture a file is of.
        """
        asked = model.removeprefix("clip:")
        if Path(asked).is_file() or Path(asked).suffix.lower() in _WEIGHTS:
            return cls._from_file(model, Path(asked))
        name, _, tag = asked.partition("/")
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
            hint = f"Close: {', '.join(f'clip:{other}' for other in close)}." if close else "Write clip:ViT-B-32, say."
            raise InputError(f"open_clip has no architecture '{name}', and there is no such file. {hint}")
        tags = open_clip.list_pretrained_tags_by_model(name)
        if tag and tag not in tags:
            raise InputError(f"open_clip has no weights '{tag}' of {name}, but {', '.join(tags) or 'none at all'}.")
        known = tuple(open_clip.get_pretrained_cfg(name, one) for one in ([tag] if tag else tags))
        if tag and known[0].get("quick_gelu"):
            config["quick_gelu"] = True
        return cls(model, name, name, config, known, tag or None)

    @classmethod
    def _from_file(cls, model: str, file: Path) -> ClipModel:
        if not file.is_file():
            raise InputError(f"there is no file {file}.")
        path = file.parent / _CONFIG_FILE
        if not path.is_file():
            raise InputError(
                f"nothing says which architecture {file} is of: write clip:ARCH --checkpoint {file} "
                f"(clip:ViT-B-32, say), or put open_clip's {_CONFIG_FILE} beside it."
            )
        try:
            content = json.loads(path.read_bytes())
            config, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
            remote_code = "trust_remote_code" in (config["text_cfg"].get("tokenizer_kwargs") or {})
            config["vision_cfg"].get("image_size")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path} does not describe a model of open_clip ({type(error).__name__}: {error}): "
                f"write clip:ARCH --checkpoint {file} instead."
            ) from error
        if remote_code:
            raise InputError(f"{path} asks for a tokenizer that is a program: edgecls runs none. Remove that line.")
        return cls(model, file.stem, f"local-dir:{file.parent}", config, (preprocess,), file=file)

    @property
    def size_px(self) -> int:
        """Side of the pictures that the architecture is made for.

        Raises:
            InputError: They are not square.
        """
        size = self.config["vision_cfg"].get("image_size", 224)
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise InputError(f"{self.model} takes pictures of {size} px: edgecls takes square ones only.")
        return int(sides.pop())

    def known_preprocess(self) -> KnownPreprocess:
        """The input that the weights were trained with; a field in which sets of weights differ is left open."""
        if self.file is not None:
            source = f"{_CONFIG_FILE} beside {self.file.name}"
        elif self.preprocess_configs:
            source = f"open_clip {self.name}/{self.tag}" if self.tag else f"open_clip's weights of {self.name}"
        else:
            source = "open_clip's default"
        sides = {"resize_px": self.size_px, "crop_px": self.size_px}
        fields: dict[str, Any] = {**sides, "colour": "rgb", "exif": "ignore"}
        unusable: dict[str, str] = {}
        for field in ("mean", "std", "interpolation", "resize_mode"):
            default = getattr(PreprocessCfg(), field)
            found = [config.get(field, default) for config in self.preprocess_configs or ({},)]
            values: set[Any] = {tuple(value) if isinstance(value, list) else value for value in found}
            if len(values) > 1:
                continue
            value = values.pop()
            if field == "resize_mode" and value not in _MODES:
                unusable["mode"] = f"resize mode '{value}'"
            elif field == "resize_mode":
                fields["mode"] = _MODES[value]
            elif field == "interpolation":
                fields[field] = "bilinear" if value == "bilinear" else "bicubic"  # as open_clip reads it
            else:
                fields[field] = value if isinstance(value, tuple) else (float(value),) * 3
        return KnownPreprocess(source=source, fields=fields, unusable=unusable)

    def build(self, crop_px: int) -> nn.Module:
        """open_clip's model, image and text towers, with meaningless weights, for square pictures of that side.

        Raises:
            InputError: open_clip cannot build it; the message has its reason.
        """
        with _as_input_error(f"open_clip cannot build {self.model} for {crop_px}x{crop_px} px"), _quiet():
            module: nn.Module = open_clip.create_model(
                self.identifier,
                load_weights=False,
                pretrained_image=False,
                pretrained_text=False,
                force_quick_gelu=bool(self.config.get("quick_gelu")),
                force_image_size=None if crop_px == self.size_px else crop_px,
            )
        return module.eval().requires_grad_(False)

    def weights_file(self) -> Path:
        """The weights that MODEL names, from the cache or the network.

        Raises:
            InputError: It names none, or they cannot be fetched; the message names the file for `--checkpoint`.
        """
        if self.file is not None:
            return self.file
        if self.tag is None:
            tags = open_clip.list_pretrained_tags_by_model(self.name)
            some = ", ".join(f"{self.model}/{tag}" for tag in tags[:4])
            raise InputError(
                f"{self.model} is an architecture without weights: pass them with --checkpoint FILE"
                + (f", or name a set of open_clip's: {some}{', …' if len(tags) > 4 else ''}." if tags else ".")
            )
        (config,) = self.preprocess_configs
        if not config.get("hf_hub"):
            return fetch_weights(config["url"], torch_hub_folder(), model=self.model)
        repository, _, filename = config["hf_hub"].rpartition("/")
        filename = filename or HF_WEIGHTS_NAME
        safe = HF_SAFE_WEIGHTS_NAME if filename == HF_WEIGHTS_NAME else f"{Path(filename).stem}.safetensors"
        return fetch_hub_weights(repository, tuple(dict.fromkeys((safe, filename))), model=self.model)

    def load(self, module: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Loads all of a checkpoint into what `build` gave, in place; what the user should know.

        Raises:
            InputError: It does not fit; the message says where.
        """
        weights = checkpoint.renamed(module.state_dict().keys()).without(_NO_WEIGHTS.__contains__)
        tensors = weights.tensors
        reason = load_by_name(module, tensors, weights.metadata)
        if reason is not None:
            with suppress(Exception):  # open_clip's renaming may be of another CLIP's files
                tensors = _converted(module, tensors)
            reason = load_by_name(module, tensors, None)
        if reason is not None:
            raise mismatch(self.model, checkpoint, Differences.between(tensors, module), reason, order_works=False)
        if self.tag is None and self.file is None and f"{self.name}-quickgelu" in open_clip.list_models():
            return (
                f"built with GELU: weights that were trained with QuickGELU, as OpenAI's, are {self.model}-quickgelu",
            )
        return ()

    def zero_shot(self, module: nn.Module, classes: Labels, templates: tuple[str, ...]) -> ZeroShotClassifier:
        """Puts the embedded texts in the place of the text tower.

        A class is the mean of its normalised embeddings under all templates, normalised again, times
        `logit_scale.exp()`.

        Args:
            module: What `build` gave, with weights in it; the image tower becomes part of the result.
            classes: Their names are put into the templates.
            templates: Each holds one `{}`.

        Raises:
            InputError: The tokenizer is not on this machine, or a text is longer than the model's context.
        """
        tokenizer = self._tokenizer()
        for text in (template.replace("{}", name) for template in templates for name in classes.names):
            length, most = _lengths(tokenizer, text)
            if length > most:
                raise InputError(
                    f"'{text}' has {length} tokens, and {self.model} reads {most}: shorten the class or --template."
                )
        fillers = [lambda name, template=template: template.replace("{}", name) for template in templates]
        embeddings = open_clip.build_zero_shot_classifier(module, tokenizer, classes.names, fillers).T
        visual: Any = module.visual
        visual.output_tokens = False  # CoCa's image tower returns them beside the features
        # timm's networks that train with parallel branches (MobileCLIP's FastViT) merge them.
        merged = reparameterize_model(visual).eval()
        scale, bias = module.logit_scale, getattr(module, "logit_bias", None)
        assert isinstance(scale, torch.Tensor)
        return ZeroShotClassifier(merged, (embeddings * scale.exp()).contiguous(), bias).eval().requires_grad_(False)

    def _tokenizer(self) -> Any:
        hub = self.config["text_cfg"].get("hf_tokenizer_name")
        remedy = f"It is Hugging Face's {hub}: pip install transformers, and run this once where there is a network"
        with _as_input_error(f"the tokenizer of {self.model} cannot be opened", remedy if hub else ""), _quiet():
            return open_clip.get_tokenizer(self.identifier)


def _lengths(tokenizer: Any, text: str) -> tuple[int, int]:
    """Tokens of a text, and how many are read, without those that are added to every text."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return len(tokenizer.encode(text)), tokenizer.context_length - 2
    # Hugging Face's, which cut off in silence; open_clip cleans the text before.
    clean = getattr(tokenizer, "clean_fn", None) or open_clip.tokenizer.get_clean_fn("canonicalize")
    tokens = tokenizer.tokenizer(clean(text), add_special_tokens=False, truncation=False)["input_ids"]
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        return len(tokens), tokenizer.context_length - 3
    return len(tokens), tokenizer.context_length - tokenizer.tokenizer.num_special_tokens_to_add()


def _converted(module: nn.Module, tensors: StateDict) -> StateDict:
    """The tensors as open_clip's own loader renames and reshapes those of older checkpoints and of Apple's."""
    tensors = convert_state_dict(module, dict(tensors))
    if "positional_embedding" in tensors and not hasattr(module, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(module, name, None)
        if own is not None and name in tensors and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(own.shape)
    return tensors


@contextmanager
def _as_input_error(what: str, remedy: str = "") -> Iterator[None]:
    """open_clip and what it builds upon raise what they like."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason"
        raise InputError(f"{what}: {type(error).__name__}: {reason}. {remedy}".rstrip(" ")) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip's log from the user: it warns of random weights, which are about to be replaced."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
