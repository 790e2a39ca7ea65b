"""The gateway: OpenAI's and Replicate's HTTP APIs, and Cog's own, in front of one running Cog server of this model.

It computes nothing itself. What comes in becomes a prediction of the Cog server (`target`), waits in one bounded
queue (`queue`) and leaves in the shape that its client expects (`openai_api`, `replicate_api`, `cog_api`).
"""
