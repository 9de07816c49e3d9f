"""From what a user names to a model that can embed and be exported: a variant, a checkpoint file, or any open_clip model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from mobileclip.errors import GateError, InputError
from mobileclip.files import canonical_json, did_you_mean, require
from mobileclip.specs import ModelSpec, PreprocessSpec, get_spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobileclip.checkpoints import Checkpoint
    from mobileclip.tokenizer import Tokenizer

UNTRAINED, OPEN_CLIP = "untrained:", "open_clip:"
PROBES = ["", "a photo of a dog", "Two cats, asleep on a green sofa; it's 3 o'clock.", "café ☕ 富士山 &amp; " * 30]
"""Captions on which a prepared open_clip model must agree with open_clip itself."""


@dataclass(frozen=True)
class Model:
    """Two fused towers with everything that is needed to use them.

    Attributes:
        name: Variant, or `open_clip:NAME`.
        form: Form of the checkpoint, see `ModelSpec`.
        source: File name of the checkpoint, or how the weights came about.
        image: Preprocessed RGB (B, 3, R, R) -> (B, embed_dim), fused, eval mode, float32.
        text: Token ids (B, context) -> (B, embed_dim).
        logit_scale: Factor of cosines before a softmax.
        weights_sha256: Over the checkpoint's tensors.
        trained: False for weights of the deterministic recipe or a random initialisation.
        branches_folded: Training branches that fusing removed.
    """

    name: str
    form: str
    source: str
    embed_dim: int
    image: nn.Module
    text: nn.Module
    preprocess: PreprocessSpec
    tokenizer: Tokenizer
    logit_scale: float
    weights_sha256: str
    trained: bool
    branches_folded: int

    @property
    def embedding_space(self) -> str:
        """SHA-256 id: equal when embeddings may be compared (same weights, preprocessing and tokenizer)."""
        identity = {
            "weights": self.weights_sha256,
            "preprocess": asdict(self.preprocess),
            "tokenizer": self.tokenizer.sha256(),
        }
        return hashlib.sha256(canonical_json(identity)).hexdigest()


def load_model(source: str) -> Model:
    """Load a model.

    Args:
        source: One of: path of a checkpoint (`.pt`, `.pth`, `.safetensors`); a variant, whose weights must have been pulled (or ship with
            the toolkit); `untrained:VARIANT`, the deterministic recipe; `open_clip:NAME` or `open_clip:NAME/PRETRAINED_TAG_OR_FILE`.

    Raises:
        InputError: Unknown name, or weights that were not pulled yet.
        CheckpointError: The file is unsafe, damaged or fits no variant.
    """
    if source.startswith(OPEN_CLIP):
        return _load_open_clip(source.removeprefix(OPEN_CLIP))
    if source.startswith(UNTRAINED):
        return _load_untrained(get_spec(source.removeprefix(UNTRAINED)))
    path = Path(source)
    if path.suffix in {".pt", ".pth", ".safetensors", ".bin", ".ckpt"} or path.is_file():
        from mobileclip import checkpoints

        return from_checkpoint(checkpoints.load(path), path.name)
    if path.is_dir() or len(path.parts) > 1:
        raise InputError(f"{source}: {'is a folder' if path.is_dir() else 'no such file'}; give a checkpoint file or the name of a variant")
    spec = get_spec(source)
    from mobileclip import checkpoints

    file = weights_file(spec)
    return from_checkpoint(checkpoints.load(file, spec), file.name)


def weights_file(spec: ModelSpec) -> Path:
    """The published checkpoint of a variant, which was pulled before, or the one that ships with the toolkit.

    Raises:
        InputError: It was not pulled yet.
    """
    if spec.weights is None:
        return Path(str(files("mobileclip.assets") / f"{spec.name}.safetensors"))
    from mobileclip import hub

    file = hub.cached(spec.weights.repo_id, spec.weights.filename)
    if file is None:
        raise InputError(
            f"{spec.name}: its weights are not here yet; run `mobileclip pull {spec.name}`, or give a checkpoint file, "
            f"or `{UNTRAINED}{spec.name}` for numbers without meaning"
        )
    return file


def _load_untrained(spec: ModelSpec) -> Model:
    from mobileclip import checkpoints

    return from_checkpoint(checkpoints.recipe_checkpoint(spec), "deterministic recipe (untrained)")


def from_checkpoint(checkpoint: Checkpoint, source: str) -> Model:
    """The fused model of a checkpoint; `source` says where it comes from."""
    from mobileclip.models.fuse import fuse
    from mobileclip.tokenizer import Tokenizer

    spec = checkpoint.spec
    model, _, branches = fuse(checkpoint.model())
    model.requires_grad_(False)
    return Model(
        name=spec.name,
        form=checkpoint.form,
        source=source,
        embed_dim=spec.embed_dim,
        image=model.visual,
        text=model.text,
        preprocess=spec.preprocess,
        tokenizer=Tokenizer.clip(spec.text.context),
        logit_scale=float(model.logit_scale.exp()),
        weights_sha256=weights_sha256(checkpoint.state),
        trained=checkpoint.trained,
        branches_folded=branches,
    )


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Over names, shapes and values of all tensors, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, list(tensor.shape), str(tensor.dtype)]))
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _load_open_clip(identifier: str) -> Model:
    require("open_clip", "open-clip", "a model of open_clip")
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg

    from mobileclip.models.open_clip import export_towers
    from mobileclip.tokenizer import Tokenizer

    name, _, pretrained = identifier.partition("/")
    if name not in open_clip.list_models():
        raise did_you_mean("open_clip model", name, open_clip.list_models())
    torch.manual_seed(0)  # without a tag the weights are random, but the same each time
    try:
        model = open_clip.create_model(name, pretrained=pretrained or None, load_weights=bool(pretrained)).eval()
        tokenize = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ImportError, ValueError) as e:
        raise InputError(f"open_clip cannot load {identifier}: {str(e).splitlines()[0]}") from None
    if isinstance(tokenize, open_clip.SimpleTokenizer):
        tokenizer = Tokenizer.clip(tokenize.context_length)
    else:
        tokenizer = Tokenizer.from_json(
            tokenize.tokenizer.backend_tokenizer.to_str().encode(),
            context_length=tokenize.context_length,
            canonicalize="canonicalize" in getattr(tokenize.clean_fn, "__name__", ""),
        )
        if getattr(tokenize, "strip_sep_token", False):
            raise InputError(f"open_clip model {name}: its tokenizer blanks separators, which a tokenizer file cannot")
    weights = weights_sha256(model.state_dict())
    side = model.visual.image_size
    height, width = side if isinstance(side, tuple | list) else (side, side)
    pixels = torch.rand(2, 3, height, width)
    with torch.no_grad():  # before the towers are changed below
        wanted = model.encode_image(pixels), model.encode_text(tokenize(PROBES))
    if hasattr(model.visual, "trunk"):
        from timm.utils.model import reparameterize_model

        model.visual.trunk = reparameterize_model(model.visual.trunk)
    end_token = tokenizer.end_id if tokenizer.end_id is not None else -1
    image, text = export_towers(model.requires_grad_(False), end_token)
    config = PreprocessCfg(**model.visual.preprocess_cfg)
    if config.resize_mode not in {"shortest", "squash"} or config.interpolation not in {"bilinear", "bicubic"}:
        raise InputError(f"open_clip model {name}: resizing {config.resize_mode} {config.interpolation} is not supported")
    size = config.size[0] if isinstance(config.size, tuple | list) else config.size
    with torch.no_grad():
        got = image(pixels), text(torch.from_numpy(tokenizer(PROBES)))
    for tower, theirs, ours in zip(("image", "text"), wanted, got, strict=True):
        if not (torch.nn.functional.cosine_similarity(theirs, ours) >= 0.99999).all():
            raise GateError(f"open_clip model {name}: its {tower} tower changed on the way to export; please report it")
    return Model(
        name=f"{OPEN_CLIP}{name}",
        form="open_clip",
        source=pretrained or "random initialisation (untrained)",
        embed_dim=got[1].shape[1],
        image=image,
        text=text,
        preprocess=PreprocessSpec(
            size,
            tuple(config.mean),
            tuple(config.std),
            "bilinear" if config.interpolation == "bilinear" else "bicubic",
            "squash" if config.resize_mode == "squash" else "shortest",
        ),
        tokenizer=tokenizer,
        logit_scale=float(model.logit_scale.exp()),
        weights_sha256=weights,
        trained=bool(pretrained),
        branches_folded=0,
    )
