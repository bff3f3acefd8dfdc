"""The drop-ins, against what they replace."""
