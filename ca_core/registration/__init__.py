"""The RA, which decides: who asks, by which means it was proven, and what it may have."""
