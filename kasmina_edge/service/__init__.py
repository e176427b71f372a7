"""The agent as a service: systemd unit and notify protocol, health socket, restart brake, bounds of its own process.

Nothing here knows bundles, slots or MQTT: the agent passes values in. All of it works without systemd too.
"""
