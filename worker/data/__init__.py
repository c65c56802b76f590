"""Customers' texts: what they say, and the child process that reads them."""
