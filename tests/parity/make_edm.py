"""Store what EDM's own networks answer: `make_edm.py --source PATH` with a checkout of NVlabs/edm and PyTorch.

The bare networks run in float64 (their attention weights and sinusoidal frequencies stay float32 inside), the
preconditioned ones in float32, which is all their wrappers do.
"""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import save_cases, save_shapes, tensors

SIZE, LABELS, AUGMENT = 8, 5, 9
SONG: dict[str, Any] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
DDPMPP = {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1]}
NCSNPP = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]
}  # fmt: skip
SKIP = {**NCSNPP, "encoder_type": "skip", "decoder_type": "skip"}
DEEP = {"channel_mult": [1, 1, 2], "attn_resolutions": [2]}
ADM: dict[str, Any] = {"model_channels": 32, "channel_mult": [1, 4], "num_blocks": 1, "attn_resolutions": [4]}

BARE = {
    "ddpmpp": ("SongUNet", {**SONG, **DDPMPP, "label_dim": LABELS, "augment_dim": AUGMENT}),
    "ncsnpp": ("SongUNet", {**SONG, **NCSNPP, **DEEP, "augment_dim": AUGMENT}),
    "skip": ("SongUNet", {**SONG, **SKIP, **DEEP}),
    "adm": ("DhariwalUNet", {**ADM, "label_dim": LABELS, "augment_dim": AUGMENT}),
}
WRAPPED = {"precond_edm": "EDMPrecond", "precond_vp": "VPPrecond", "precond_ve": "VEPrecond"}

# As the repository's README lists them, on the defaults of its train.py.
CIFAR: dict[str, Any] = {"augment_dim": AUGMENT, "channel_mult": [2, 2, 2], "dropout": 0.13}
FFHQ = {**CIFAR, "channel_mult": [1, 2, 2, 2], "dropout": 0.05}
AFHQ = {**FFHQ, "dropout": 0.25}
ADM_64 = {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "dropout": 0.1, "label_dim": 1000}
PUBLISHED = {
    "edm_cifar10_ddpmpp": (32, "SongUNet", {**CIFAR, **DDPMPP}),
    "edm_cifar10_ddpmpp_cond": (32, "SongUNet", {**CIFAR, **DDPMPP, "label_dim": 10}),
    "edm_cifar10_ncsnpp": (32, "SongUNet", {**CIFAR, **NCSNPP}),
    "edm_cifar10_ncsnpp_cond": (32, "SongUNet", {**CIFAR, **NCSNPP, "label_dim": 10}),
    "edm_ffhq64_ddpmpp": (64, "SongUNet", {**FFHQ, **DDPMPP}),
    "edm_ffhq64_ncsnpp": (64, "SongUNet", {**FFHQ, **NCSNPP}),
    "edm_afhqv2_64_ddpmpp": (64, "SongUNet", {**AFHQ, **DDPMPP}),
    "edm_afhqv2_64_ncsnpp": (64, "SongUNet", {**AFHQ, **NCSNPP}),
    "edm_imagenet64": (64, "DhariwalUNet", ADM_64),
}


def complete(networks: Any, kind: str, size: int, config: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a class, its defaults among them."""
    given = inspect.signature(getattr(networks, kind).__mro__[1].__init__).parameters.values()
    defaults = {p.name: p.default for p in given if p.default is not p.empty}
    return {"kind": kind, "img_resolution": size, **defaults, **config}


def load(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Fill a module with made tensors, its filters excepted; the shapes of all."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    made = {name: torch.from_numpy(value) for name, value in tensors(own).items()}
    made |= {name: value for name, value in module.state_dict().items() if name.endswith("resample_filter")}
    module.load_state_dict(made, strict=True)
    return own


def inputs(seed: int) -> dict[str, np.ndarray]:
    """Two labelled images and one without a label; augmentation vectors."""
    draw = np.random.RandomState(seed)
    return {
        "x": draw.normal(size=(3, SIZE, SIZE, 3)).astype(np.float32),
        "label": np.array([3, 0, LABELS], np.int32),
        "augment": draw.normal(size=(3, AUGMENT)).astype(np.float32),
    }


def one_hot(label: np.ndarray) -> torch.Tensor:
    """[B, LABELS]; zeros for the null label."""
    return torch.from_numpy(np.eye(LABELS + 1)[label, :LABELS])


def nchw(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Channels first."""
    return torch.from_numpy(x).to(dtype).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Channels last, float32."""
    return x.permute(0, 2, 3, 1).float().numpy()


@torch.no_grad()
def main() -> None:
    """Write fixtures/edm.npz and fixtures/edm_shapes.json.gz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    sys.path.insert(0, parser.parse_args().source)
    from training import networks

    cases = {}
    for number, (case, (kind, config)) in enumerate(BARE.items()):
        net = getattr(networks, kind)(img_resolution=SIZE, in_channels=3, out_channels=3, **config)
        shapes = load(net)
        net = net.double().eval()
        given = inputs(number)
        t = np.array([-1.5, 0.3, 1.1], np.float32)
        x, times, label = nchw(given["x"], torch.float64), torch.from_numpy(t).double(), one_hot(given["label"])
        augment = torch.from_numpy(given["augment"]).double()
        entry = {"config": complete(networks, kind, SIZE, config), "shapes": shapes, **given, "t": t}
        cases[case] = entry | {"out": nhwc(net(x, times, label))}
        if "augment_dim" in config:
            cases[case]["out_augment"] = nhwc(net(x, times, label, augment))
    for number, (case, kind) in enumerate(WRAPPED.items()):
        config = {**SONG, **DDPMPP, "label_dim": LABELS} if kind == "VPPrecond" else {**SONG, **NCSNPP}
        wrapped = getattr(networks, kind)(SIZE, 3, model_type="SongUNet", **config)
        shapes = load(wrapped)
        wrapped.eval()
        given = inputs(100 + number)
        # Near t = 1 a time of 999 t is rounded in float32, by theirs as by ours, to more than is compared.
        sigma = np.array([0.02, 0.06, 0.2] if kind == "VPPrecond" else [0.05, 0.7, 6.0], np.float32)
        x, label = nchw(given["x"], torch.float32), one_hot(given["label"]).float()
        x = x * torch.from_numpy(np.sqrt(0.25 + sigma**2)).reshape(-1, 1, 1, 1)
        x0 = wrapped(x, torch.from_numpy(sigma), label)
        entry = {"config": complete(networks, "SongUNet", SIZE, config), "shapes": shapes, **given, "sigma": sigma}
        cases[case] = entry | {"x": nhwc(x), "x0": nhwc(x0)}

    published = {}
    with torch.device("meta"):
        for name, (size, kind, config) in PUBLISHED.items():
            net = networks.EDMPrecond(
                size,
                3,
                config.get("label_dim", 0),
                model_type=kind,
                **{k: v for k, v in config.items() if k != "label_dim"},
            )
            published[name] = {key: tuple(value.shape) for key, value in net.state_dict().items()}
            cases[f"published {name}"] = {"config": complete(networks, kind, size, config)}
            print(name, sum(value.numel() for value in net.parameters()))
    save_cases("edm", cases)
    save_shapes("edm", published)


if __name__ == "__main__":
    main()
