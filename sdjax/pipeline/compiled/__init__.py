"""What runs on the devices: pure functions of arrays, compiled."""
