"""What the commands of the command line do; their flags are in `jaxdiff.cli`."""
