"""What enrolling costs, measured on the running daemon."""
