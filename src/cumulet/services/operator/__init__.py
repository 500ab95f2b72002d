"""What an operator asks of the cloud itself, beside OpenStack's APIs: its state, and why things are as they are."""
