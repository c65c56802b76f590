"""From a message to a row: understand, register, commit, acknowledge. It ends there, in milliseconds."""
