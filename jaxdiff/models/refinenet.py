"""NCSNv2's network: dilated residual stages on the way down, RefineNet's multi-path refinement on the way up.

Stage l has channels * channel_mult[l] channels. Its first block changes size: with dilation 1 it halves every spatial
axis (not at l = 0), with a larger one it keeps the size and looks further instead, as networks for segmentation do.
A stage's output is refined together with what came from the deeper one, r_{l+1}, to r_l; the parts are in
`jaxdiff.models.refinenet_blocks`. The output is conv(elu(norm(r_0))).

The network is not told the noise level: a score network f(x) / sigma is one whose noise prediction -f(x) is a function
of x alone, because how noisy an image is can be seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.fields import Rule, bad, channels_out, check_fields, each, input_of, whole
from jaxdiff.models.refinenet_blocks import DilatedBlock, InstanceNormPlus, Refine, torch_conv

_RULES = {
    "channels": whole(2),
    "channel_mult": each(whole(1)),
    "dilations": each(whole(1)),
    "num_res_blocks": whole(1),
    "num_classes": Rule(lambda num: num == 0, "0, because it takes no labels"),
}


class Stage(NamedTuple):
    """A stage of a `RefineNet`.

    Attributes:
        features: its channels.
        dilation: of its convolutions.
        halves: whether its first block halves the size.
        refined: the channels of what is refined from it.
    """

    features: int
    dilation: int
    halves: bool
    refined: int


class RefineNet(nn.Module):
    """NCSNv2's network. With prediction "eps" its output is the predicted noise: score = -output / sigma.

    Defaults are those for 32x32 and 64x64 images. For 128x128 the original has channel_mult (1, 2, 2, 4, 4) and
    dilations (1, 1, 1, 2, 4), for 256x256 (1, 2, 2, 2, 4, 4) and (1, 1, 1, 1, 2, 4).

    Args:
        out_channels: of the output; None for as many as x has.
        channels: of the first stage, 2 or more.
        channel_mult: the channels of each stage as multiples of `channels`.
        dilations: of each stage; after the first, 1 halves the size and more keeps it.
        num_res_blocks: residual blocks per stage.
        num_classes: 0; it takes no labels.
        dtype: what to compute in. Parameters, statistics and the output are float32.

    Calling it takes
        x: [B, ..spatial.., C], every spatial size divisible by 2 for each stage that halves.
        t: not used, nor is `cond`, `train` or `rngs`: the network sees noise, and has no dropout.
    and returns float32 [B, ..spatial.., out_channels].

    Raises:
        UsageError: a field out of range (when built); a size that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = RefineNet(channels=4)
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 3)

    Reference: Song, Ermon, Improved Techniques for Training Score-Based Generative Models, 2020, arXiv:2006.09011,
    appendix B.
    """

    out_channels: int | None = None
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    dilations: Sequence[int] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    num_classes: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        stages = len(self.channel_mult)
        if not stages:
            raise bad("channel_mult", self.channel_mult, "one whole number for each stage, at least one")
        if len(self.dilations) != stages:
            raise bad("dilations", self.dilations, f"one whole number for each of the {stages} stages")
        super().__post_init__()

    def plan(self) -> tuple[Stage, ...]:
        """The stages, the largest first.

        Returns:
            One `Stage` per entry of `channel_mult`.
        """
        widths = [self.channels * m for m in self.channel_mult]
        refined = [widths[0], *widths[:-1]][:-1] + widths[-1:]  # the deepest has one input, and keeps its width
        halves = [level > 0 and dilation == 1 for level, dilation in enumerate(self.dilations)]
        return tuple(map(Stage, widths, self.dilations, halves, refined))

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Mapping[str, Any] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Any] | None = None,
    ) -> Array:
        del t, cond, train, rngs
        stages = self.plan()
        x = input_of(x, sum(stage.halves for stage in stages))
        spatial = x.ndim - 2

        h = torch_conv(self.channels, spatial, self.dtype, "conv_in")(x.astype(self.dtype))
        maps = []
        for s, stage in enumerate(stages):
            for i in range(self.num_res_blocks):
                first = s > 0 and i == 0
                h = DilatedBlock(stage.features, stage.dilation, first, self.dtype, name=f"stage_{s}_block_{i}")(h)
            maps.append(h)
        refined: list[Array] = []
        for s in reversed(range(len(stages))):
            refine = Refine(stages[s].refined, 1 if s else 3, self.dtype, name=f"refine_{s}")
            refined = [refine([maps[s], *refined])]
        h = nn.elu(InstanceNormPlus(dtype=self.dtype, name="norm_out")(refined[0]))
        return torch_conv(channels_out(self, x), spatial, self.dtype, "conv_out")(h).astype(jnp.float32)
