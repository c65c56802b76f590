"""The HTTP API: a route table that reads like the contract; handlers parse, call the store once, present."""
