"""What runs inside the trainer's process: recipe steps, their events and checkpoints.

Imports `schemas` and nothing else of ours, so that the trainer's environment may live on another machine.
"""
