"""Stores what the original DiT, U-ViT and diffusers' DiT answer: fixtures/dit.npz and fixtures/dit_shapes.json.gz.

    python tests/parity/make_dit.py --dit DIT --uvit UVIT

with PyTorch, timm, einops and diffusers, and checkouts of facebookresearch/DiT and baofff/U-ViT. The published models
are DiT's own list, U-ViT's config files without text, and diffusers' default with the published 8 output channels, made
on the meta device.
"""

import argparse
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch
from common import save_cases, save_shapes, tensors

# Arguments of the original classes. "shown" are the sides of the images given, the first the network's own.
DIT = {"input_size": 8, "hidden_size": 32, "depth": 3, "num_heads": 4, "num_classes": 5, "in_channels": 3}
UVIT = {"img_size": 8, "patch_size": 2, "in_chans": 3, "embed_dim": 32, "depth": 4, "num_heads": 4}
DIFFUSERS = {
    "num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 3, "num_layers": 3, "sample_size": 8,
    "num_embeds_ada_norm": 5,
}  # fmt: skip
CASES = {
    "dit": {**DIT, "patch_size": 2},
    "dit_patch4": {**DIT, "patch_size": 4, "in_channels": 4, "mlp_ratio": 2.0},
    "dit_fixed": {**DIT, "patch_size": 2, "learn_sigma": False, "class_dropout_prob": 0.0},
    "diffusers": {**DIFFUSERS, "out_channels": 6, "shown": [8, 12]},
    "diffusers_patch4": {**DIFFUSERS, "patch_size": 4, "attention_bias": False, "norm_eps": 1e-2},
    "uvit": {**UVIT, "num_classes": 5},
    "uvit_plain": {**UVIT, "conv": False, "patch_size": 4},
    "uvit_time": {**UVIT, "mlp_time_embed": True, "qkv_bias": True, "mlp_ratio": 2.0, "num_classes": 5},
    "uvit_no_skips": {**UVIT, "skip": False},
}


def one(name):
    """diffusers' copies of the embedding go by the name of the first."""
    return re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", "transformer_blocks.0.norm1.emb.", name)


def case(classes, name, config):
    """The inputs and the outputs of one small network, in float64."""
    given = dict(config)
    shown = given.pop("shown", [8])
    kind = name.split("_")[0]
    model = classes[kind](**given).double().eval()
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    made = {k: torch.from_numpy(tensors({one(k): s})[one(k)]) for k, s in shapes.items()}
    arrays = {}
    if kind == "dit":
        arrays["pos_embed"] = model.pos_embed.detach().numpy().astype(np.float32)
        made["pos_embed"] = model.pos_embed.detach()
    model.load_state_dict(made, strict=True)

    draw = np.random.RandomState(7)
    arrays["t"] = np.array([3.0, 417.0], np.float32)
    if "num_classes" in config or kind == "diffusers":
        # A label, and the null label where there is one (U-ViT counts it among the classes).
        arrays["y"] = np.array([2, 4 if kind == "uvit" or config.get("class_dropout_prob") == 0 else 5])
    t, y = torch.from_numpy(arrays["t"]).double(), torch.from_numpy(arrays["y"]) if "y" in arrays else None
    for side in shown:
        x = draw.normal(size=(2, config.get("in_channels", 3), side, side)).astype(np.float32)
        with torch.no_grad():
            if kind == "diffusers":
                out = model(torch.from_numpy(x).double(), timestep=t, class_labels=y).sample
            else:
                out = model(torch.from_numpy(x).double(), t, *([] if y is None else [y]))
        arrays |= {f"x{side}": x, f"out{side}": out.numpy().astype(np.float32)}
    return {"config": config, "shapes": shapes, **arrays}


class Values(dict):
    """Enough of ml_collections.ConfigDict to read a config file."""

    def __init__(self, initial_dictionary=()):
        super().__init__(initial_dictionary)
        self.__dict__ = self


def uvit_config(path):
    """The arguments of a U-ViT config file."""
    sys.modules["ml_collections"] = types.SimpleNamespace(ConfigDict=Values)
    space = {}
    exec(path.read_text(), space)
    nnet = dict(space["get_config"]().nnet)
    assert nnet.pop("name") == "uvit"
    return nnet


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dit", type=Path, required=True)
    parser.add_argument("--uvit", type=Path, required=True)
    folders = parser.parse_args()
    sys.path[:0] = [str(folders.dit), str(folders.uvit)]
    from diffusers import DiTTransformer2DModel
    from libs.uvit import UViT
    from models import DiT, DiT_models

    with torch.device("meta"):
        models = {name: make() for name, make in DiT_models.items()}
        models["DiT-XL/2 512"] = DiT_models["DiT-XL/2"](input_size=64)
        models["diffusers DiT-XL/2"] = DiTTransformer2DModel(out_channels=8)
        for path in sorted((folders.uvit / "configs").glob("*_uvit_*.py")):
            if "mscoco" not in path.name:
                models[path.stem] = UViT(**uvit_config(path))
    shapes = {name: {k: tuple(v.shape) for k, v in model.state_dict().items()} for name, model in models.items()}
    save_shapes("dit", shapes)
    for name, model in models.items():
        print(f"{name:25} {sum(p.numel() for p in model.parameters() if p.requires_grad):>12,}")

    torch.Tensor.float = torch.Tensor.double  # the code casts where it wants at least float32
    classes = {"dit": DiT, "uvit": UViT, "diffusers": DiTTransformer2DModel}
    save_cases("dit", {name: case(classes, name, config) for name, config in CASES.items()})


if __name__ == "__main__":
    main()
