"""Tests in a process that has the stand-in preloaded: `test_on_device.py` starts it."""
