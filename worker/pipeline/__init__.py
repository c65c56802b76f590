"""One run from claim to end: order the recipe's steps, check what comes back, commit."""
