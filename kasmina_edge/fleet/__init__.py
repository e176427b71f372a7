"""The controller side: repository, controller, store and monitor; talks to agents only through contracts."""
