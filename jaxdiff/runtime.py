"""What the command line sets before JAX starts: flags of the compiler, and where compiled programs are kept.

Nothing here is needed to use the library; it is what makes a command faster. Each setting gives way to the user's own,
in `XLA_FLAGS` or JAX's environment variables. From Python, call `prepare` before anything is computed.
"""

import contextlib
import importlib.util
import os
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

# On a CPU XLA hands single convolutions to YNNPACK, which is the slower way for these networks: benchmarks/RESULTS.md.
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
# XLA for CPUs drops the barriers behind which `remat` recomputes, and with them what it saves: benchmarks/RESULTS.md.
_PASSES_FLAG = "--xla_disable_hlo_passes=cse_barrier_expander"
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
# An unknown flag ends the process, so it is set only where it is known to exist.
_FLAG_SINCE, _FLAG_UNTIL = (0, 10), (0, 13)
_CACHE_BYTES = 4 * 2**30


def prepare() -> None:
    """Set the compiler's flags and the cache of compiled programs, where the user has not.

    Before JAX has started its backend; later the flags have no effect.
    """
    given = os.environ.get("XLA_FLAGS", "")
    ours = [flag for flag in flags() if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *ours])
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        with contextlib.suppress(OSError, RuntimeError):  # no home folder, or none that can be written: no cache
            config.update("jax_compilation_cache_dir", str(cache_folder()))
            trim(cache_folder(), _CACHE_BYTES)


def flags() -> list[str]:
    """The compiler's flags for this machine and this version of JAX."""
    release = tuple(int(part) for part in version("jaxlib").split(".")[:2])
    if not _FLAG_SINCE <= release < _FLAG_UNTIL:
        return []
    # The compilers of accelerators need that pass.
    accelerator = any(importlib.util.find_spec(name) for name in _ACCELERATORS)
    return [_CPU_FLAG] if accelerator else [_CPU_FLAG, _PASSES_FLAG]


def cache_folder() -> Path:
    """Where compiled programs are kept: in the user's cache, apart for each kind of processor, whose instructions they
    contain."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        kind = "unknown"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "jaxdiff" / f"xla-{zlib.crc32(kind.encode()):08x}"


def trim(folder: Path, most: int) -> None:
    """Delete the oldest files of a folder until it holds at most so many bytes.

    Args:
        folder: may be missing.
        most: bytes.
    """
    found = []
    for path in folder.glob("*"):
        try:
            found.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError:
            continue  # another process was faster
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
