"""Store what the original EDM2 network answers: python tests/parity/make_edm2.py --source EDM2 (needs torch).

The source is a checkout of github.com/NVlabs/edm2; only names, shapes, inputs and outputs are kept.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import save_cases, save_shapes, tensors

# Small networks: fields of the original's UNet, and of ours.
SMALL = {
    "labels": {"channels": 8, "mult": [1, 2], "blocks": 1, "attention": [4], "head": 8, "size": 8, "classes": 5},
    "plain": {"channels": 8, "mult": [1, 2], "blocks": 2, "attention": [8], "head": 4, "size": 8, "classes": 0},
}
FULL = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


def shapes_of(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def scaled(made):
    """The raw tensors with gains and frequencies of the size of trained ones, so that every path is on."""
    for name in made:
        if name.endswith("gain"):
            made[name] = np.float32(0.7) + np.float32(3) * made[name]
        if name.endswith(("freqs", "phases")):
            made[name] = np.float32(20) * made[name]
    return made


def run(unet, case):
    net = unet(
        img_resolution=case["size"], img_channels=3, label_dim=case["classes"], model_channels=case["channels"],
        channel_mult=case["mult"], num_blocks=case["blocks"], attn_resolutions=case["attention"],
        channels_per_head=case["head"],
    )  # fmt: skip
    shapes = shapes_of(net)
    net.load_state_dict({k: torch.tensor(v) for k, v in scaled(tensors(shapes)).items()}, strict=True)
    rng = np.random.RandomState(1)
    x = rng.normal(size=(4, case["size"], case["size"], 3)).astype(np.float32)
    t = np.array([-1.4, -0.3, 0.2, 1.1], np.float32)
    label = np.array([0, 4, 2, 5], np.int32)  # 5 is null: a row of zeros
    one_hot = np.eye(6, 5)[label] if case["classes"] else None
    # In float32: the original's norms are written for it and refuse float64.
    net = net.eval()
    with torch.no_grad():
        y = net(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(t),
            None if one_hot is None else torch.tensor(one_hot, dtype=torch.float32),
        )
    return {"config": case, "shapes": shapes, "x": x, "t": t, "label": label, "y": y.permute(0, 2, 3, 1).numpy()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    sys.path.insert(0, parser.parse_args().source)
    from training.networks_edm2 import UNet

    save_cases("edm2", {name: run(UNet, case) for name, case in SMALL.items()})
    full = {}
    for name, channels in FULL.items():
        for resolution, img_channels in (("64", 3), ("512", 4)):
            with torch.device("meta"):
                net = UNet(img_resolution=64, img_channels=img_channels, label_dim=1000, model_channels=channels)
            full[f"edm2_img{resolution}_{name}"] = shapes_of(net)
    save_shapes("edm2", full)


if __name__ == "__main__":
    main()
