"""Evaluate E5 models: BEIR and MTEB by two protocols, and a probe for servers."""
