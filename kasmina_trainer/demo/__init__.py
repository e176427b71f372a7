"""``make demo``: the whole loop with real processes over a real broker, on real digits."""
