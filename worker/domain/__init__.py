"""Pure decisions: no await, no I/O, no clock, no randomness of its own."""
