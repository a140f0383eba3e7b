"""The network: backbones, their geometry, `SPPNet`, and its files."""
