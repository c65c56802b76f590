"""How an owner and a step on another machine talk: over a shared folder, or through object storage alone."""
