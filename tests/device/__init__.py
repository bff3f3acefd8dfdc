"""The XenBus device.

`probes` ask a device for each of its rules; `on_device` has tests that run in a process with the
fake device; `mutants` are clients that break a rule, each of which a test must notice; `trials` are
long runs for a real Xen host.
"""
