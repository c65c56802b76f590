"""What an operator types: ``python -m worker …``. For people on a terminal; JSON with ``--json``."""
