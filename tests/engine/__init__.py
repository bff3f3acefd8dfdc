"""The protocol itself: wire, paths, permissions, requests, and the engine in its two roles."""
