"""Randomly initialised CLIPs: the classifier's logits are open_clip's."""

import json
import logging
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from edgecls.export.job import export_bundle
from edgecls.models import PreprocessOverride, open_classifier, torchvision_operators  # noqa: F401
from edgecls.models.clip_zero_shot import ClipModel
from edgecls.models.preprocess_override import resolve_preprocess
from edgecls.runtime import ImageSet, InputError, Labels, MissingExtraError
from edgecls.runtime import load as load_bundle

import open_clip  # isort: skip

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
CONFIGS = {
    "small-vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "small-vit-quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "small-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
    "small-biased": {
        "embed_dim": 24,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_proj": "linear"},
        "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True},
    },
    "small-coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
    },
    "small-hub": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": TEXT | {"hf_tokenizer_name": "nobody/tokenizer"},
    },
}
CLASSES = Labels(("tabby cat", "sports car", "frog"))
TEMPLATES = ("a photo of a {}", "a sketch of the {}, in pencil")


@pytest.fixture(scope="module", autouse=True)
def configs():
    with pytest.MonkeyPatch.context() as patch:
        for name, config in CONFIGS.items():
            patch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        yield


def random_clip(name):
    """A model whose logits differ by several units between pictures and classes, as a trained one's."""
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # of random weights
    model = open_clip.create_model(name, load_weights=False).eval()
    logging.disable(logging.NOTSET)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.running_mean, std=0.3)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
    torch.nn.init.constant_(model.logit_scale, np.log(60))
    return model


def saved(model, path):
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """`small-vit` and the file of its weights."""
    model = random_clip("small-vit")
    return model, saved(model, tmp_path_factory.mktemp("clip") / "weights.pt")


def pictures_of(folder):
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.png"))[:6]]


def floats_of(pictures, name):
    """Decoded and normalised by open_clip's own transform."""
    size = CONFIGS[name]["vision_cfg"]["image_size"] if name in CONFIGS else 224
    config = open_clip.transform.PreprocessCfg(size=size)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    return torch.stack([transform(picture) for picture in pictures])


def open_clips_logits(model, name, pictures, templates=TEMPLATES, classes=CLASSES):
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length if name == "ViT-B-32" else 16)
    with torch.no_grad():
        texts = [model.encode_text(tokenizer([t.format(c) for c in classes.names]), normalize=True) for t in templates]
        text = torch.nn.functional.normalize(torch.stack(texts).mean(0), dim=-1)
        logits = model.logit_scale.exp() * model.encode_image(floats_of(pictures, name), normalize=True) @ text.T
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
    return logits.numpy()


def module_logits(module, floats):
    with torch.no_grad():
        return module(floats).numpy()


@pytest.mark.parametrize("name", ["small-vit-quickgelu", "small-resnet", "small-biased"])
def test_the_bundles_logits_are_open_clips(name, tmp_path, pictures):
    model = random_clip(name)
    opened = open_classifier(
        f"clip:{name}", checkpoint=saved(model, tmp_path / "weights.pt"), classes=CLASSES, templates=TEMPLATES
    )
    assert not any("text" in part or "token_embedding" in part for part in opened.source.state_dict())
    path = tmp_path / "clip.edgecls"
    result = export_bundle(opened, target="onnxruntime", precision="fp32", output=path)
    assert result.manifest.labels == CLASSES
    expected = open_clips_logits(model, name, pictures_of(pictures))
    with load_bundle(path) as session:
        got = np.concatenate([session.logits(session.preprocess.pixels(one)) for one in pictures_of(pictures)])
    assert np.ptp(expected) > 1
    assert np.abs(got - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.mark.slow
def test_vit_b_32(tmp_path, pictures):
    model = random_clip("ViT-B-32")
    opened = open_classifier(
        "clip:ViT-B-32", checkpoint=saved(model, tmp_path / "weights.pt"), classes=CLASSES, templates=TEMPLATES
    )
    path = tmp_path / "clip.edgecls"
    export_bundle(opened, target="onnxruntime", precision="fp32", output=path)
    expected = open_clips_logits(model, "ViT-B-32", pictures_of(pictures))
    with load_bundle(path) as session:
        got = np.concatenate([session.logits(session.preprocess.pixels(one)) for one in pictures_of(pictures)])
    assert np.abs(got - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.mark.parametrize(("name", "target"), [("small-vit", "onnxruntime"), ("small-resnet", "openvino")])
def test_integers(name, target, tmp_path, pictures):
    model = random_clip(name)
    opened = open_classifier(f"clip:{name}", checkpoint=saved(model, tmp_path / "weights.pt"), classes=CLASSES)
    result = export_bundle(
        opened,
        target=target,
        precision="int8",
        output=tmp_path / "clip.edgecls",
        calibration=ImageSet.from_folder(pictures),
    )
    assert any("agree" in note for note in result.notes), result.notes
    expected = open_clips_logits(model, name, pictures_of(pictures), TEMPLATES[:1])
    with load_bundle(result.path) as session:
        got = np.concatenate([session.logits(session.preprocess.pixels(one)) for one in pictures_of(pictures)])
    assert np.abs(got - expected).max() <= 0.25 * np.ptp(expected)


def test_coca(tmp_path, pictures):
    model = random_clip("small-coca")
    torch.nn.init.zeros_(model.text_decoder.text_projection)  # open_clip leaves it as the memory was
    file = saved(model, tmp_path / "weights.pt")
    opened = open_classifier("clip:small-coca", checkpoint=file, classes=CLASSES, templates=TEMPLATES)
    expected = open_clips_logits(model, "small-coca", pictures_of(pictures))
    got = module_logits(opened.source, floats_of(pictures_of(pictures), "small-coca"))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_new_classes_need_only_a_new_export(small, pictures):
    _, file = small
    options = {"checkpoint": file, "templates": TEMPLATES}
    three = open_classifier("clip:small-vit", classes=CLASSES, **options)
    four = open_classifier("clip:small-vit", classes=Labels(("frog", "toad", "newt", "sports car")), **options)
    assert four.labels.names == ("frog", "toad", "newt", "sports car")
    floats = floats_of(pictures_of(pictures), "small-vit")
    old, new = module_logits(three.source, floats), module_logits(four.source, floats)
    np.testing.assert_allclose(new[:, [3, 0]], old[:, 1:], atol=1e-4)


def test_without_templates_the_note_says_which(small, pictures):
    model, file = small
    opened = open_classifier("clip:small-vit", checkpoint=file, classes=CLASSES)
    assert "no --template: the classes are read as 'a photo of a {}'" in opened.notes
    got = module_logits(opened.source, floats_of(pictures_of(pictures), "small-vit"))
    expected = open_clips_logits(model, "small-vit", pictures_of(pictures), TEMPLATES[:1])
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert any("clip:small-vit-quickgelu" in note for note in opened.notes)
    assert (opened.name, opened.model) == ("small-vit", "clip:small-vit")


@pytest.mark.parametrize("form", ["training", "half", "openai"])
def test_forms_of_checkpoints(small, form, tmp_path, pictures):
    model, _ = small
    state = dict(model.state_dict())
    if form == "training":
        state = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": value for name, value in state.items()}}
    elif form == "half":
        state = {name: value.half() for name, value in state.items()}
    else:
        state["logit_scale"] = state["logit_scale"].reshape(1)
        state |= {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}
    torch.save(state, tmp_path / "weights.bin")
    opened = open_classifier("clip:small-vit", checkpoint=tmp_path / "weights.bin", classes=CLASSES)
    got = module_logits(opened.source, floats_of(pictures_of(pictures), "small-vit"))
    expected = open_clips_logits(model, "small-vit", pictures_of(pictures), TEMPLATES[:1])
    np.testing.assert_allclose(got, expected, atol=1 if form == "half" else 1e-4)


def test_a_text_tower_of_its_own_takes_older_checkpoints(small, monkeypatch):
    _, file = small
    config = CONFIGS["small-vit"] | {"custom_text": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-custom", config)
    floats = torch.rand(2, 3, 32, 32)
    answers = [
        module_logits(open_classifier(f"clip:{name}", checkpoint=file, classes=CLASSES).source, floats)
        for name in ("small-vit", "small-custom")
    ]
    np.testing.assert_allclose(*answers, atol=1e-5)


def test_a_file_beside_its_configuration(small, tmp_path):
    model, _ = small
    file = saved(model, tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"write clip:ARCH --checkpoint \S*mine.pt .*open_clip_config.json beside"):
        open_classifier(f"clip:{file}", classes=CLASSES)
    config = tmp_path / "open_clip_config.json"
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": 0.5, "interpolation": "bilinear", "resize_mode": "squash"}
    config.write_text(json.dumps({"model_cfg": CONFIGS["small-vit"], "preprocess_cfg": preprocess}))
    opened = open_classifier(f"clip:{file}", classes=CLASSES)
    assert opened.name == "mine"
    assert opened.preprocess.mode == "squash"
    assert opened.preprocess.interpolation == "bilinear"
    assert opened.preprocess.mean == opened.preprocess.std == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="holds its own weights: leave --checkpoint"):
        open_classifier(f"clip:{file}", checkpoint=file, classes=CLASSES)
    assert opened.preprocess_source["mean"] == "open_clip_config.json beside mine.pt"
    longest = {"resize_mode": "longest"}
    config.write_text(json.dumps({"model_cfg": CONFIGS["small-vit"], "preprocess_cfg": longest}))
    with pytest.raises(InputError, match="resize mode 'longest'.*--resize-mode"):
        open_classifier(f"clip:{file}", classes=CLASSES)
    program = {"tokenizer_kwargs": {"trust_remote_code": True}, "hf_tokenizer_name": "x/y"}
    config.write_text(json.dumps({"model_cfg": CONFIGS["small-vit"] | {"text_cfg": TEXT | program}}))
    with pytest.raises(InputError, match="tokenizer that is a program"):
        open_classifier(f"clip:{file}", classes=CLASSES)
    config.write_text("{}")
    with pytest.raises(InputError, match=r"does not describe a model of open_clip \(KeyError"):
        open_classifier(f"clip:{file}", classes=CLASSES)


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        ("clip:small-vit", {"classes": Labels(("frog",))}, "has one class, 'frog'.*add another"),
        ("clip:small-vit", {"classes": None}, "no classes of its own.*--classes FILE"),
        ("clip:small-vit", {"labels": CLASSES}, "leave --labels out"),
        ("clip:small-vit", {"match": "order"}, "--match order is not for clip:small-vit"),
        ("clip:small-vit", {"templates": ("a photo",)}, "must hold one {}"),
        ("clip:small-vit", {"templates": ("{} and {}",)}, "must hold one {}"),
        ("clip:small-vit", {"classes": Labels(("Cat", "dog", "cat"))}, "'Cat' and 'cat', which read the same"),
        ("clip:small-vit", {"classes": Labels(("cat", "dog " * 14))}, "has 18 tokens.*reads 14: shorten"),
        ("clip:small-vit", {"override": PreprocessOverride(resize_px=48, crop_px=48)}, "another picture size"),
        ("clip:small-resnet", {}, "does not fit clip:small-resnet"),
        ("clip:small-hub", {}, "the tokenizer of clip:small-hub cannot be opened.*nobody/tokenizer"),
        ("clip:small-vit/mine", {}, "no weights 'mine' of small-vit, but none at all"),
        ("clip:ViT-B-23", {}, "no architecture 'ViT-B-23'.*clip:ViT-B-32"),
        ("clip:absent.safetensors", {}, "there is no file absent.safetensors"),
        ("resnet18", {}, "--classes and --template are for zero-shot models"),
        ("resnet18", {"classes": None, "templates": TEMPLATES}, "--labels FILE"),
    ],
)
def test_refusals(small, model, options, complaint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=complaint):
        open_classifier(model, **({"checkpoint": small[1], "classes": CLASSES} | options))


def test_a_file_of_another_clip_is_refused(tmp_path):
    torch.save({"image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight": torch.ones(2)}, tmp_path / "mobile.pt")
    with pytest.raises(InputError, match="does not fit clip:small-vit"):
        open_classifier("clip:small-vit", checkpoint=tmp_path / "mobile.pt", classes=CLASSES)


class HuggingFace:
    """Cuts off in silence, as open_clip's wrappers of Hugging Face's tokenizers: a word is a token."""

    def __init__(self, mode):
        self.tokenizer_mode, self.context_length, self.tokenizer = mode, 16, self
        self.clean_fn = str.strip

    def __call__(self, texts, add_special_tokens=True, truncation=True):
        if isinstance(texts, str):
            assert not add_special_tokens
            assert not truncation
            return {"input_ids": [7] * len(texts.split())}
        return torch.full((len(texts), 16), 7)

    def num_special_tokens_to_add(self):
        return 2


@pytest.mark.parametrize(("mode", "most"), [("", 14), ("clips", 13)])
def test_texts_that_a_tokenizer_of_hugging_face_cuts_off_are_refused(small, mode, most, monkeypatch):
    monkeypatch.setattr(ClipModel, "_tokenizer", lambda _: HuggingFace(mode))
    options = {"checkpoint": small[1], "templates": ("{}",)}
    open_classifier("clip:small-vit", classes=Labels(("cat", " ".join(["dog"] * most))), **options)
    with pytest.raises(InputError, match=f"has {most + 1} tokens, and clip:small-vit reads {most}: shorten"):
        open_classifier("clip:small-vit", classes=Labels(("cat", " ".join(["dog"] * (most + 1)))), **options)


def test_the_weights_of_a_tag_say_how_pictures_are_prepared():
    def preprocess(model, **override):
        known = ClipModel.find(model).known_preprocess()
        return resolve_preprocess(model, known, PreprocessOverride(**override))

    half = (0.5, 0.5, 0.5)
    tagged, sources = preprocess("clip:ViT-L-14/laion2b_s32b_b82k")
    assert (tagged.mean, sources["mean"]) == (half, "open_clip ViT-L-14/laion2b_s32b_b82k")
    with pytest.raises(InputError, match="give --mean --std"):  # open_clip's weights of ViT-L-14 differ in them
        preprocess("clip:ViT-L-14")
    assert preprocess("clip:ViT-L-14", mean=half, std=half)[0] == tagged
    assert preprocess("clip:MobileCLIP-S1")[0].interpolation == "bilinear"
    assert preprocess("clip:ViT-B-16-SigLIP")[0].mode == "squash"


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_the_weights_of_a_tag_say_which_gelu(tag, quick):
    assert ClipModel.find(f"clip:ViT-B-32/{tag}").config.get("quick_gelu", False) is quick


def test_without_a_network_the_error_names_the_file(tmp_path, monkeypatch):
    from huggingface_hub import constants

    def refuse(request, timeout=None):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"no network in tests.*--checkpoint FILE") as error:
        open_classifier("clip:ViT-B-32/laion2b_s34b_b79k", classes=CLASSES)
    assert "open_clip_model.safetensors of laion/CLIP-ViT-B-32-laion2B-s34B-b79K" in str(error.value)
    with pytest.raises(InputError, match=r"without weights: pass them with --checkpoint FILE.*clip:ViT-B-32/openai"):
        open_classifier("clip:ViT-B-32", classes=CLASSES)


def test_a_missing_package_names_the_extra(small, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "edgecls.models.clip_zero_shot")
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"edgecls\[clip\]"):
        open_classifier("clip:small-vit", checkpoint=small[1], classes=CLASSES)
