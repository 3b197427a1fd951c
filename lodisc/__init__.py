"""The LoDisc method (arXiv 2403.04066): encoder, views, objective and probes, on torch, timm and, for views, OpenCV."""

__version__ = "0.1.0"
