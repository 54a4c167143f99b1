"""The Touchstone benchmark as software: from per-case scores to tables, tests and one page.

`read_results` -> `Results`; `analyse` does everything in memory, `run` writes it to a folder. Each
step may be called alone (`touchstone_jax.benchmark.table`, `significance`, `groups`, …).
"""
