"""Tests in a process that has the fake device preloaded: `test_on_device.py` starts it."""
