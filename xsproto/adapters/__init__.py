"""What the adapter packages share: the only room of xsproto that may touch the operating system."""

__all__: list[str] = []
