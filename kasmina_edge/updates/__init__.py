"""Signed updates: what a device trusts (TUF, and the floors TUF lacks), and how few bytes they take."""
