"""Durable jobs: what a client was promised survives any process.

`storage.JobStorage` opens a data directory and its database. Two faces stand on it, in one process or in several:
`store.JobStore` for whoever answers clients, `worker.JobWorker` for whoever does the work; neither imports torch or
knows what a job makes. `messages` is what both sides say to each other. In the engine, `requests` judges what is asked
for, and `runner.JobRunner` does the work.
"""
