"""The engine: continuous batching with a different adapter per row. Knows nothing of tenants, names or the wire."""
