"""What keeps a device honest: keys and sealing, drift, alerts, the audit log. Values and bytes, never models."""
