"""Energy, carbon and water of token batches: estimation, attribution, factors."""
