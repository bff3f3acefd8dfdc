"""The manual: its programs run, its diagrams are whole, its reference is complete."""
