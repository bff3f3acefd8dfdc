"""The daemon and its store, alone and against the real C xenstored."""
