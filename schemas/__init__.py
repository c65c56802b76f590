"""The wire vocabulary: what crosses a process, the broker or HTTP, as frozen pydantic models."""
