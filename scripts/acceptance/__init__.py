"""What scripts/device_acceptance.py is made of."""
