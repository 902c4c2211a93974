"""The command line's client side: what the verbs do and how it looks."""
