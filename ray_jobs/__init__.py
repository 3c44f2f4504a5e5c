"""From a config to runs: one, a sweep or a cluster job; also the `murine` command."""
