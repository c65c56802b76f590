"""A package only so that ``importlib.resources`` finds the migrations and queries wherever we are installed."""
