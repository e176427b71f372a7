"""The blueprint library: kinds of modules that may grow at a seed site, one family a file."""
