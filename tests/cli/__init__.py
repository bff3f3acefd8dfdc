"""The command ``xsproto``."""
