"""The conformance kit on every adapter and every daemon."""
