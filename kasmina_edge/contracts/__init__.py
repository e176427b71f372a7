"""What trainer, device, controller and monitor must agree on; nothing here does I/O beyond parsing bytes."""
