"""The rim: log keys, Weights & Biases, tables and figures."""
