"""The notebooks are collected as notebooks; their paired scripts are not tests."""

collect_ignore_glob = ["*.py"]
