"""rave_tools: audio models from gin-bindable blocks, trained here, played in realtime hosts.

Importing the package does nothing; start reading at ``rave_tools/contracts.py``.
"""

__version__ = "0.1.0"
