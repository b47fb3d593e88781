"""Stores outputs of diffusers' Transformer2DModel, Stable Diffusion's block: `python -m tests.parity.make_transformer`.

Needs torch and diffusers; the tests do not.
"""

import numpy as np
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from tests.parity.common import save_cases, tensors

CASES = {
    "conv": {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 8, "cross_attention_dim": 6},
    "linear_depth2": {"num_attention_heads": 4, "attention_head_dim": 2, "in_channels": 8, "cross_attention_dim": 5,
                      "num_layers": 2, "use_linear_projection": True},
}  # fmt: skip


def run(config: dict) -> dict:
    model = Transformer2DModel(norm_num_groups=4, **config).eval().double()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(v).double() for k, v in tensors(shapes).items()}, strict=True)
    rng = np.random.RandomState(0)
    x = rng.normal(size=(2, 8, 4, 4))
    context = rng.normal(size=(2, 3, config["cross_attention_dim"]))
    with torch.no_grad():
        y = model(torch.from_numpy(x), encoder_hidden_states=torch.from_numpy(context)).sample
    arrays = {"x": x, "context": context, "y": y.numpy()}
    return {"config": config, "shapes": shapes, **{k: np.asarray(v, np.float32) for k, v in arrays.items()}}


if __name__ == "__main__":
    save_cases("transformer", {name: run(config) for name, config in CASES.items()})
