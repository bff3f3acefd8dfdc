"""What every client is made of: sessions, operations, and the two APIs, mostly without I/O."""
