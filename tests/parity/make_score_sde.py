"""Store what score_sde's own networks answer: `make_score_sde.py --source PATH` with a checkout of score_sde_pytorch.

Two things of the original are replaced before it is imported: its CUDA extension `op`, by a module that holds the
pure-PyTorch `upfirdn2d` of the same file, and ml_collections, of which it needs dictionaries with attributes. The
networks run in float64, but for the float32 features of time of the positional embedding. `ncsnpp` with the blocks
of DDPM is not stored: its upsampling raises in the original.
"""

import argparse
import importlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import save_cases, save_shapes, tensors

SIZE, SCALES = 8, 64
SMALL: dict[str, Any] = {
    "image_size": SIZE, "num_scales": SCALES, "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]
}  # fmt: skip
DEEP = {"ch_mult": [1, 1, 2], "attn_resolutions": [2]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpmpp": ("vp/cifar10_ddpmpp_continuous", {**SMALL, "num_res_blocks": 2}),
    "ncsnpp": ("ve/cifar10_ncsnpp_continuous", {**SMALL, **DEEP}),
    "ncsnpp_sub_vp": ("subvp/cifar10_ncsnpp_continuous", SMALL),
    "ncsnpp_256": ("ve/church_ncsnpp_continuous", {**SMALL, **DEEP}),
    "ddpm": ("vp/ddpm/cifar10", {**SMALL, "nf": 32, "num_scales": 1000}),
}
PUBLISHED = {
    "ddpmpp_cifar10": "vp/cifar10_ddpmpp_continuous",
    "ddpmpp_deep_cifar10": "vp/cifar10_ddpmpp_deep_continuous",
    "ddpmpp_subvp_cifar10": "subvp/cifar10_ddpmpp_continuous",
    "ddpmpp_deep_subvp_cifar10": "subvp/cifar10_ddpmpp_deep_continuous",
    "ncsnpp_vp_cifar10": "vp/cifar10_ncsnpp_continuous",
    "ncsnpp_cifar10": "ve/cifar10_ncsnpp_continuous",
    "ncsnpp_deep_cifar10": "ve/cifar10_ncsnpp_deep_continuous",
    "ncsnpp_church256": "ve/church_ncsnpp_continuous",
    "ncsnpp_bedroom256": "ve/bedroom_ncsnpp_continuous",
    "ncsnpp_celebahq256": "ve/celebahq_256_ncsnpp_continuous",
    "ncsnpp_ffhq256": "ve/ffhq_256_ncsnpp_continuous",
    "ncsnpp_ffhq1024": "ve/ffhq_ncsnpp_continuous",
    "score_sde_ddpm_cifar10": "vp/ddpm/cifar10_continuous",
}
# What of a configuration decides the state dict and its meaning.
KEPT = {
    "training": ("sde", "continuous"),
    "data": ("image_size", "num_channels", "centered"),
    "model": (
        "name", "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "resamp_with_conv", "fir", "fir_kernel",
        "skip_rescale", "resblock_type", "progressive", "progressive_input", "progressive_combine", "embedding_type",
        "scale_by_sigma", "sigma_min", "sigma_max", "num_scales", "beta_min", "beta_max", "dropout",
    ),
}  # fmt: skip


class Dictionary(dict):
    """A dictionary with attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def replace_modules(source: Path) -> None:
    """Put stand-ins for `op` and ml_collections where imports look."""
    text = (source / "op" / "upfirdn2d.py").read_text()
    op = types.ModuleType("op")
    exec("import torch\nfrom torch.nn import functional as F\n" + text[text.index("def upfirdn2d(") :], op.__dict__)
    given = op.upfirdn2d
    op.upfirdn2d = lambda x, kernel, **kwargs: given(x, kernel.to(x.dtype), **kwargs)  # type: ignore[attr-defined]
    collections = types.ModuleType("ml_collections")
    collections.ConfigDict = Dictionary  # type: ignore[attr-defined]
    sys.modules |= {"op": op, "ml_collections": collections}
    sys.path.insert(0, str(source))


def config_of(name: str, **changes: Any) -> Any:
    """One of the original's configurations, changed."""
    config = importlib.import_module("configs." + re.sub("/", ".", name)).get_config()
    config.model.setdefault("fourier_scale", 16)
    for key, value in changes.items():
        (config.data if key == "image_size" else config.model)[key] = value
    return config


def plain(config: Any) -> dict[str, Any]:
    """Its decisive values."""
    return {key: config[part][key] for part, keys in KEPT.items() for key in keys if key in config[part]}


def load(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Fill a module with made tensors, the table of noise levels excepted; the shapes of all."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    made = {name: torch.from_numpy(value) for name, value in tensors(own).items()}
    module.load_state_dict(made | {"sigmas": module.sigmas}, strict=True)
    return own


def main() -> None:
    """Write fixtures/score_sde.npz and fixtures/score_sde_shapes.json.gz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    replace_modules(Path(parser.parse_args().source))
    import sde_lib
    from models import ddpm, layers, ncsnpp, utils  # noqa: F401

    features = layers.get_timestep_embedding
    layers.get_timestep_embedding = lambda t, dim: features(t, dim).double()

    cases = {}
    for number, (case, (name, changes)) in enumerate(CASES.items()):
        config = config_of(name, **changes)
        model = config.model
        net = utils.get_model(model.name)(config)
        shapes = load(net)
        sigmas = net.sigmas.numpy()
        net = net.double().eval()
        # The discrete models' table of standard deviations would have four digits in float32.
        torch.set_default_dtype(torch.float64)
        if config.training.sde == "vesde":
            sde = sde_lib.VESDE(model.sigma_min, model.sigma_max, model.num_scales)
        else:
            kind = sde_lib.VPSDE if config.training.sde == "vpsde" else sde_lib.subVPSDE
            sde = kind(model.beta_min, model.beta_max, model.num_scales)
        torch.set_default_dtype(torch.float32)
        draw = np.random.RandomState(number)
        exploding = config.training.sde == "vesde"
        # Discrete models truncate 999 t to a row.
        t = (torch.tensor([3, 11, 60]).double() + 1e-7) / 999
        t = torch.tensor([0.05, 0.4, 0.9]).double() if exploding else t
        x0 = torch.from_numpy(draw.uniform(-1 if config.data.centered else 0, 1, size=(3, 3, SIZE, SIZE)))
        mean, std = sde.marginal_prob(x0, t)
        x = mean + std[:, None, None, None] * torch.from_numpy(draw.normal(size=x0.shape))
        x = x.float().double()
        with torch.no_grad():
            score = utils.get_score_fn(sde, net, continuous=config.training.continuous)(x, t)
            labels = std if exploding else 999 * t
            out = net(x, labels)
        cases[case] = {
            "config": plain(config),
            "shapes": shapes,
            "sigmas": sigmas,
            "t": t.numpy(),
            "labels": labels.numpy(),
            "x": x.permute(0, 2, 3, 1).float().numpy(),
            "out": out.permute(0, 2, 3, 1).float().numpy(),
            "score": score.permute(0, 2, 3, 1).float().numpy(),
        }

    published = {}
    for name, path in PUBLISHED.items():
        config = config_of(path)
        net = utils.get_model(config.model.name)(config)
        cases[f"published {name}"] = {"config": plain(config)}
        published[name] = {key: tuple(value.shape) for key, value in net.state_dict().items()}
        print(name, sum(value.numel() for value in net.parameters()))
    save_cases("score_sde", cases)
    save_shapes("score_sde", published)


if __name__ == "__main__":
    main()
