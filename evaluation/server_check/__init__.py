"""Checks a server that claims to embed texts with an E5 model: `scripts/check_server.py`."""
