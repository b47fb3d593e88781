"""The U-Net of DDPM, with the choices of its successors as fields.

Defaults are DDPM's for CIFAR-10: UNet() on [B, 32, 32, 3] has 35,746,307 parameters. The others' are presets
(`jaxdiff.models.presets`): improved diffusion, ADM, DDPM++, NCSN++, EDM.

Each level has `num_res_blocks` residual blocks on the way down and one more on the way up, which takes the feature
maps of the way down as additional channels, the last first. Between the two: block, attention, block. What follows
what is `UNet.plan`; the converters of other projects' weights walk the same plan.

NCSN++ has the image itself pass beside the feature maps, I_0 = x and l the level:

    in, "skip":      I_l = halve(I_{l-1}),      h_l <- h_l + W I_l                                        (1)
    in, "residual":  I_l = h_l <- skip_scale (h_l + conv(halve(I_{l-1})))                                 (2)
    out, "skip":     O_l = conv(silu(norm(h_l))) + double(O_{l+1}),   the output is O_0                   (3)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxdiff.models.encoder import Encoder, Part, Plan
from jaxdiff.models.fields import channels_out
from jaxdiff.models.fir import double
from jaxdiff.models.layers import conv
from jaxdiff.models.resample import Upsample
from jaxdiff.models.unet_fields import per_level


class UNet(Encoder):
    """A convolutional network from noisy data to a prediction of the same spatial shape, given the time.

    Args:
        channels: the unit of width, at least 4.
        first_channels: of the first convolution; None for `channels`.
        channel_mult: the channels of each level as multiples of `channels`; each further level halves the size.
        num_res_blocks: residual blocks per level on the way down, one number or one for each level.
        attention_resolutions: the sizes (largest spatial axis of the feature map) at which attention follows a block.
        attention_levels: instead of them, the levels: ((on the way down), (on the way up)).
        mid: "attention" (block, attention, block), "plain" (two blocks) or "none".
        dropout: rate in [0, 1), used with train=True.
        num_heads: of the attention.
        head_dim: channels per head; where given it decides, and `num_heads` is ignored.
        attention: "self" (DDPM; with a context GLIDE's, keys and values of both) or "transformer" (Stable Diffusion's).
        depth: blocks of a transformer, one number or one for each level.
        context_dim: channels of cond["context"]; 0 for none.
        flash: cuDNN's attention where there is one, see `jaxdiff.models.attention.attend`.
        norm_groups: most groups of a group normalisation.
        norm_epsilon: of the group normalisations; 1e-6 in DDPM, 1e-5 in PyTorch.
        norm_group_size: least channels in a group.
        conditioning: how the embedding enters a block: "add" (DDPM) or "scale_shift" (improved diffusion).
        downsample: "conv" (of stride 2), "pool" (a fixed filter) or "block" (a residual block that resamples, ADM); one
            for all levels or one for each.
        downsample_padding: of "conv": "same" (DDPM) or "symmetric" (PyTorch).
        fir: taps of the fixed filters ("pool", "repeat", "block" and the image beside), (1, 3, 3, 1) in NCSN++; () for
            means and repetition.
        resample_shortcut: a resampling block has a linear shortcut whatever its channels (NCSN++).
        skip_scale: the factor on the sum of a residual branch and its input.
        mid_skip_scale: the same in the middle; None for `skip_scale`.
        progressive_input: "none", "skip" or "residual": the image beside the way down, equations (1) and (2).
        time_embedding: "sinusoidal" (DDPM), "fourier" (random frequencies) or "learned" (a table).
        freq_shift: of the sinusoidal features: 1 in DDPM, 0 in improved diffusion.
        num_positions: rows of the "learned" table.
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        null_label: whether the table has a row for it; a network without one always needs labels (ADM).
        label_into: "embedding", or "features" (before the maps of the time embedding; EDM).
        augment_dim: length of cond["augment"]; 0 for none. It may be missing (EDM: no augmentation).
        aug_level: whether cond["aug_level"], a noise level of the conditioning, is embedded by sinusoids.
        pooled: cond["pooled"]: "none", "add" ([B, 4 channels] into the embedding) or "project" (any length).
        concat: names of entries of cond which are further input channels: "self_cond" (may be missing: zeros),
            "low_res" (resized to x), or others.
        remat: "none"; "convs" (gradients recompute all but the convolutions and products); "blocks" (all of a block).
        dtype: what to compute in. Parameters, statistics, the path of time and the output are float32.
        out_channels: of the prediction; None for those of the input.
        upsample: "conv" (repetition, then a convolution), "repeat" or "block"; one for all levels or one for each.
        attention_last: on the way up attention follows only the last block of a level (NCSN++).
        progressive_output: "none" or "skip": the image beside the way up, equation (3).
        learned_variance: doubles the output channels: [prediction, variance].

    Calling it takes
        x: [B, ..spatial.., C], every spatial size divisible by 2^(levels - 1).
        t: float [B], in the unit of the model's time input.
        cond: {"label": int32 [B]} in 0..num_classes, or None: all null (an error without a null row). Other entries as
            the fields above say; what no field asks for is not used. A label out of range gives NaN.
        train: with dropout.
        rngs: {"dropout": one typed key per example, [B]}; call through `Network`, because Linen's own `apply` keeps
            an argument of this name to itself.
    and returns float32 [B, ..spatial.., out_channels] (twice the channels with `learned_variance`).

    Raises:
        UsageError: a field out of range (when built); a size, time, label or key that does not fit (when traced).

    Examples:
        >>> import jax
        >>> net = UNet(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=())
        >>> x, t = jax.numpy.ones((2, 8, 8, 3)), jax.numpy.zeros(2)
        >>> y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)
        >>> y.shape
        (2, 8, 8, 3)

    Reference: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239, appendix B; Nichol,
    Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672, appendix A; Dhariwal, Nichol,
    Diffusion Models Beat GANs, 2021, arXiv:2105.05233, section 3; Song et al., Score-Based Generative Modeling through
    SDEs, 2021, arXiv:2011.13456, appendix H.
    """

    out_channels: int | None = None
    upsample: str | Sequence[str] = "conv"
    attention_last: bool = False
    progressive_output: str = "none"
    learned_variance: bool = False

    def plan(self, size: int) -> Plan:
        """What follows what, for an input whose largest spatial axis has this size."""
        last, up = len(self.channel_mult) - 1, []
        for level in range(last, -1, -1):
            blocks = per_level(self.num_res_blocks, level)
            for i in range(blocks + 1):
                attends = self.attends(size, level, 1) and (i == blocks or not self.attention_last)
                name = f"up_{level}_attn_{i}" if attends else ""
                up.append(Part("block", f"up_{level}_block_{i}", level, self.width(level), name))
            if level > 0:
                up.append(Part("upsample", f"up_{level}_upsample", level, self.width(level)))
        return super().plan(size)._replace(up=tuple(up))

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
        x, t, plan = self.start(x, t)
        h, emb, skips, context = self.encode(x, t, cond, plan, train, rngs)
        channels = channels_out(self, x)
        out = None
        for part, after in zip(plan.up, (*plan.up[1:], None), strict=True):
            if part.kind == "block":
                h = self.block(part, context)(h, emb, train, rngs, skips.pop())
                if (after is None or after.kind != "block") and (part.level == 0 or self.progressive_output == "skip"):
                    out = self._image_out(h, out, part.level, channels)
                continue
            kind = per_level(self.upsample, part.level)
            if kind == "block":
                h = self.block(part, context, "up")(h, emb, train, rngs)
            else:
                h = Upsample(kind, tuple(self.fir) if kind == "repeat" else (), self.dtype, name=part.name)(h)
        assert out is not None
        return out

    def _image_out(self, h: Array, out: Array | None, level: int, channels: int) -> Array:
        """Equation (3); at level 0 what every U-Net ends with."""
        norm, last = ("norm_out", "conv_out") if level == 0 else (f"up_{level}_skip_norm", f"up_{level}_skip_conv")
        h = nn.silu(self.norm()(self.dtype, name=norm)(h))
        image = conv(channels, h.ndim - 2, scale=0.0, dtype=self.dtype, name=last)(h).astype(jnp.float32)
        return image if out is None else image + double(out, tuple(self.fir))
