"""Trials of the blocking client on a real XenBus device: load, ends, a guest's agent.

    python -m tests.device.trials DEVICE [OPTION...] [TRIAL...]

runs the TRIALs that are named, or all that harm nobody and need no more than the OPTIONs give,
each in a process of its own, and prints a line for each: what was seen. `--help` lists them. Root
may use the device, and the trials that stop the daemon for moments, or kill it, are for dom0. In
both kinds of domain they work below the domain's own `data`, which a guest may write.

An agent in a guest and its partner in dom0 are two trials that meet:

    python -m tests.device.trials /dev/xen/xenbus agent                            # in the guest
    python -m tests.device.trials /dev/xen/xenbus --domid N --seconds 600 host     # in dom0

The host asks for SECONDS and tells the agent to end; with `--stay` it does not, and can be run
again, as after ``xl save`` and ``xl restore`` of the guest.
"""
