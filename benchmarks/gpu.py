"""The rows for an accelerator: large networks in bfloat16, as images a second and as a share of the matrix rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPURow:
    """One network on one device.

    Args:
        name: for `--rows`.
        net: a key of `peers.NETS`.
        what: forward or train.
        batch: examples.
        dispatch: training steps in one call of a compiled program (PyTorch makes as many calls).
    """

    name: str
    net: str
    what: str
    batch: int
    dispatch: int = 1

    @property
    def job(self) -> dict:
        """The job of `peers`."""
        calls = max(1, 16 // self.dispatch) if self.what == "train" else 32
        return {
            "net": self.net, "what": self.what, "batch": self.batch, "dtype": "bfloat16", "steps": 0,
            "dispatch": self.dispatch, "calls": calls,
        }  # fmt: skip


ROWS = (
    GPURow("gpu-ddpm-forward", "ddpm_cifar10", "forward", 256),
    GPURow("gpu-ddpm-train", "ddpm_cifar10", "train", 128),
    GPURow("gpu-ddpm-train-8", "ddpm_cifar10", "train", 128, dispatch=8),
    GPURow("gpu-adm64-forward", "adm_64", "forward", 128),
    GPURow("gpu-adm64-train", "adm_64", "train", 64),
    GPURow("gpu-adm256-forward", "adm_256", "forward", 16),
    GPURow("gpu-adm256-train", "adm_256", "train", 8),
    GPURow("gpu-dit-forward", "dit_b_2", "forward", 256),
    GPURow("gpu-dit-train", "dit_b_2", "train", 256),
    GPURow("gpu-dit-train-8", "dit_b_2", "train", 256, dispatch=8),
)
# Large enough for the device's full rate in bfloat16.
MATRIX = {"what": "matmul", "batch": 8192, "dtype": "bfloat16", "calls": 50}
