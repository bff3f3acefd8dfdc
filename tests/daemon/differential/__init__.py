"""The embedded daemon and the real C xenstored side by side: the same steps, the same answers.

`sides` has both daemons behind one interface, `pair` plays a step on both and compares, `script`
thinks up steps, `shrink` finds the few of them that show a difference. What is left out, and why:
docs/explain/embedded.md.
"""
