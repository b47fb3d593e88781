"""What the command line sets before JAX starts, and that the user's own settings stay."""

import os
import subprocess
import sys

import pytest

from jaxdiff import runtime

SHOW = (
    "from jaxdiff import runtime; runtime.prepare(); import jax, os; "
    "print(os.environ['XLA_FLAGS']); print(jax.config.jax_compilation_cache_dir); print(jax.numpy.ones(2).sum())"
)


def prepared(tmp_path, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    env = {**clean, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, check=True)
    flags, folder, total = done.stdout.splitlines()
    assert total == "2.0"  # the flags are known to this version: JAX ends the process for one that is not
    return flags, folder


def test_flags_and_cache_are_set(tmp_path):
    flags, folder = prepared(tmp_path)
    assert flags == (
        "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution --xla_disable_hlo_passes=cse_barrier_expander"
    )
    assert folder.startswith(str(tmp_path / "jaxdiff" / "xla-"))


def test_the_users_own_settings_stay(tmp_path):
    own = "--xla_cpu_experimental_ynn_fusion_type=-individual_dot --xla_disable_hlo_passes=dce"
    flags, folder = prepared(tmp_path, XLA_FLAGS=own, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert flags == own
    assert folder == str(tmp_path / "mine")


def test_a_compiler_for_accelerators_keeps_its_passes(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setattr(runtime.jax.config, "update", lambda *args: None)
    runtime.prepare()
    assert os.environ["XLA_FLAGS"] == (
        "--xla_force_host_platform_device_count=2 --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    )


def test_the_cache_is_trimmed_to_its_newest_files(tmp_path):
    for age in range(4):
        (tmp_path / str(age)).write_bytes(bytes(10))
        os.utime(tmp_path / str(age), (1e9 - age, 1e9 - age))
    runtime.trim(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    runtime.trim(tmp_path / "missing", 0)


@pytest.mark.parametrize("release", ["0.9.2", "0.13.0", "1.0.0"])
def test_no_flag_for_versions_it_was_not_seen_in(monkeypatch, release):
    monkeypatch.setattr(runtime, "version", lambda name: release)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/nowhere")
    monkeypatch.setattr(runtime.jax.config, "update", lambda *args: None)
    runtime.prepare()
    assert os.environ["XLA_FLAGS"] == ""
