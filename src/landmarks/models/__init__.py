"""Networks: backbones, heads and their weights."""
