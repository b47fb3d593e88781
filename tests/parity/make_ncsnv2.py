"""Store what NCSNv2's own networks answer: `make_ncsnv2.py --source PATH` with a checkout of ermongroup/ncsnv2 and
PyTorch. In float64."""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import save_cases, save_shapes, tensors

# Class, size of the image, width, largest sigma, levels.
SMALL: dict[str, Any] = {
    "small": ("NCSNv2", (16, 8), 8, 5.0, 7),
    "deeper": ("NCSNv2Deeper", (8, 16), 8, 9.0, 5),
    "deepest": ("NCSNv2Deepest", (16, 16), 8, 9.0, 5),
}
PUBLISHED: dict[str, Any] = {
    "ncsnv2_cifar10": ("NCSNv2", (32, 32), 128, 50.0, 232),
    "ncsnv2_celeba64": ("NCSNv2", (64, 64), 128, 90.0, 500),
    "ncsnv2_lsun_church96": ("NCSNv2Deeper", (96, 96), 128, 140.0, 788),
    "ncsnv2_lsun_tower128": ("NCSNv2Deeper", (128, 128), 128, 190.0, 1086),
    "ncsnv2_lsun_bedroom128": ("NCSNv2Deeper", (128, 128), 128, 190.0, 1086),
    "ncsnv2_ffhq256": ("NCSNv2Deepest", (256, 256), 128, 348.0, 2311),
}


def build(networks: Any, kind: str, size: tuple[int, int], width: int, largest: float, levels: int, device: str) -> Any:
    """A network of the published configuration files' settings."""
    data = SimpleNamespace(channels=3, image_size=size[0], logit_transform=False, rescaled=False)
    model = SimpleNamespace(
        normalization="InstanceNorm++", nonlinearity="elu", ngf=width, spec_norm=False, num_classes=levels,
        sigma_dist="geometric", sigma_begin=largest, sigma_end=0.01,
    )  # fmt: skip
    return getattr(networks, kind)(SimpleNamespace(data=data, model=model, device=device))


def made(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """`tensors`, with gains around 1."""
    return {k: v + np.float32(k.endswith(("gamma", "alpha"))) for k, v in tensors(shapes, seed).items()}


@torch.no_grad()
def main() -> None:
    """Write fixtures/ncsnv2.npz and fixtures/ncsnv2_shapes.json.gz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    sys.path.insert(0, parser.parse_args().source)
    from models import ncsnv2 as networks

    torch.set_default_dtype(torch.float64)  # it makes zeros of the default type

    cases = {}
    for seed, (name, (kind, size, *rest)) in enumerate(SMALL.items()):
        net = build(networks, kind, size, *rest, device="cpu")
        state = net.state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items() if key != "sigmas"}
        sigmas = state["sigmas"].numpy().copy()
        weights = {key: torch.from_numpy(value) for key, value in made(shapes, seed).items()}
        net.load_state_dict(weights | {"sigmas": state["sigmas"]}, strict=True)
        net = net.double().eval()
        draw = np.random.RandomState(seed)
        row = np.array([0, len(sigmas) // 2, len(sigmas) - 1])
        noise = sigmas[row][:, None, None, None] * draw.normal(size=(3, *size, 3))
        x = (draw.uniform(size=(3, *size, 3)) + noise).astype(np.float32)
        given = torch.from_numpy(x).double().permute(0, 3, 1, 2)
        score = net(given, torch.from_numpy(row)).permute(0, 2, 3, 1).float().numpy()
        config = {"kind": kind, "seed": seed, "width": rest[0], "largest": rest[1], "levels": rest[2]}
        cases[name] = {"config": config, "shapes": shapes, "sigmas": sigmas, "x": x, "row": row, "score": score}
    save_cases("ncsnv2", cases)

    published = {}
    for name, (kind, size, *rest) in PUBLISHED.items():
        with torch.device("meta"):
            net = build(networks, kind, size, *rest, device="meta")
        published[name] = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        print(name, sum(value.numel() for value in net.parameters()))
    save_shapes("ncsnv2", published)


if __name__ == "__main__":
    main()
