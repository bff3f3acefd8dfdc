"""Long runs with figures: ``python -m tests.reliability.NAME``."""
