"""What anyio_ws costs, beside its neighbours: ``python -m benchmarks`` measures it; see README.md here."""
