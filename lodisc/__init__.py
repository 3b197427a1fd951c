"""The LoDisc method (arXiv 2403.04066): encoder, views, objective and probes, on torch and timm alone."""

__version__ = "0.1.0"
