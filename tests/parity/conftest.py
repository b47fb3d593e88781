"""The scripts that make fixtures need PyTorch; the tests do not."""

collect_ignore_glob = ["make_*.py"]
