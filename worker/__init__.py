"""Trains custom speech recognition models: owns a run from message to model."""

__version__ = "0.1.0"
