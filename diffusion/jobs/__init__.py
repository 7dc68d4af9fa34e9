"""Durable jobs: what a client was promised survives any process.

`storage.JobStorage` opens a data directory and its database. Two faces stand on it, in one process or in several:
`store.JobStore` for whoever answers clients, `worker.JobWorker` for whoever does the work. Nothing here imports torch,
runs a pipeline or knows what a job makes.
"""
