"""DDPM++ and NCSN++, the networks of score-based generative modeling through SDEs, by the repository's configurations.

The variance-exploding ones were trained on images in [0, 1] and are given here for [-1, 1], with twice the noise and
the time that says so, the logarithm of half of it. The paper gives no sizes: `parameters` is counted in the original
code, the frequencies of the Fourier features included.
"""

from typing import Any

from jaxdiff.models.presets.spec import Spec

_PAPER = (
    "Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021, arXiv:2011.13456, "
    "appendix H"
)
_FIR = (1.0, 3.0, 3.0, 1.0)
_COMMON: dict[str, Any] = {
    "channels": 128, "channel_mult": (1, 2, 2, 2), "num_res_blocks": 4, "attention_resolutions": (16,),
    "attention_last": True, "norm_group_size": 4, "downsample": "block", "upsample": "block",
    "resample_shortcut": True, "skip_scale": 0.5**0.5, "dropout": 0.1,
}  # fmt: skip
_RESIDUAL: dict[str, Any] = {"fir": _FIR, "progressive_input": "residual"}
_SKIP: dict[str, Any] = {"fir": _FIR, "progressive_input": "skip", "progressive_output": "skip", "dropout": 0.0}
_256 = {"channel_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, **_SKIP}
_1024 = {"channels": 16, "channel_mult": (1, 2, 4, 8, 16, 32, 32, 32), "num_res_blocks": 1, **_SKIP}


def _vp(config: str, parameters: int, process: str = "vp_sde", network: str = "ncsnpp", **fields: Any) -> Spec:
    return Spec(
        "unet",
        {**_COMMON, **fields},
        (32, 32, 3),
        process={"name": process},
        time_input={"name": "time", "factor": 999.0},
        layout={"family": "score_sde", "network": network, "sigmas": (0.01, 50.0, 1000)},
        parameters=parameters,
        reference=f"{_PAPER}; {config}",
    )


def _ve(config: str, parameters: int, size: int, most: float, levels: int, **fields: Any) -> Spec:
    layout = {"family": "score_sde", "network": "ncsnpp", "sigmas": (0.01, most, levels)}
    return Spec(
        "unet",
        {**_COMMON, "time_embedding": "fourier", **fields},
        (size, size, 3),
        process={"name": "ve_sde", "sigma_min": 0.02, "sigma_max": 2.0 * most},
        time_input={"name": "log_sigma", "unit": 2.0},
        layout={**layout, "negative": True, "time_scale": 4.0},
        parameters=parameters,
        reference=f"{_PAPER}; {config}",
    )


_DDPM: dict[str, Any] = {"num_res_blocks": 2, "norm_group_size": 1, "downsample": "conv", "upsample": "conv",
         "resample_shortcut": False, "skip_scale": 1.0}  # fmt: skip

PRESETS: dict[str, Spec] = {
    "ddpmpp_cifar10": _vp("vp/cifar10_ddpmpp_continuous", 61_804_419),
    "ddpmpp_deep_cifar10": _vp("vp/cifar10_ddpmpp_deep_continuous", 106_632_579, num_res_blocks=8),
    "ddpmpp_subvp_cifar10": _vp("subvp/cifar10_ddpmpp_continuous", 61_804_419, "sub_vp_sde"),
    "ddpmpp_deep_subvp_cifar10": _vp(
        "subvp/cifar10_ddpmpp_deep_continuous", 106_632_579, "sub_vp_sde", num_res_blocks=8
    ),
    "ncsnpp_vp_cifar10": _vp("vp/cifar10_ncsnpp_continuous", 62_693_251, **_RESIDUAL),
    "ncsnpp_cifar10": _ve("ve/cifar10_ncsnpp_continuous", 62_758_915, 32, 50.0, 1000, **_RESIDUAL),
    "ncsnpp_deep_cifar10": _ve(
        "ve/cifar10_ncsnpp_deep_continuous", 107_587_075, 32, 50.0, 1000, num_res_blocks=8, **_RESIDUAL
    ),
    "ncsnpp_church256": _ve("ve/church_ncsnpp_continuous", 65_574_549, 256, 380.0, 2000, **_256),
    "ncsnpp_bedroom256": _ve("ve/bedroom_ncsnpp_continuous", 65_574_549, 256, 378.0, 2000, **_256),
    "ncsnpp_celebahq256": _ve("ve/celebahq_256_ncsnpp_continuous", 65_574_549, 256, 348.0, 2000, **_256),
    "ncsnpp_ffhq256": _ve("ve/ffhq_256_ncsnpp_continuous", 65_574_549, 256, 348.0, 2000, **_256),
    "ncsnpp_ffhq1024": _ve("ve/ffhq_ncsnpp_continuous", 105_785_896, 1024, 1348.0, 2000, **_1024),
    "score_sde_ddpm_cifar10": _vp("vp/ddpm/cifar10_continuous", 35_218_947, network="ddpm", **_DDPM),
}
