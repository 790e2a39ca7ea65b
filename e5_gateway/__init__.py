"""The gateway: the HTTP APIs of others in front of one Cog server of this model.

It runs no model. Each request becomes a prediction of the Cog server (`target`), waits in one bounded queue (`queue`),
and is answered in the format of its API (`openai_api`, `cohere_api`, `tei_api`, `replicate_api`, `cog_api`).
"""
