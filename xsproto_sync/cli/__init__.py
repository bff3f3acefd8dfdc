"""The command ``xsproto``. It needs the extra ``cli``."""

__all__: list[str] = []
