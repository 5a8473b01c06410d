"""A peer-to-peer network in which volunteers' machines train and serve language models together."""

__version__ = "0.1.0"
