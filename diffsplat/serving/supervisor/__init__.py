"""Keeps a server alive, and changes what a running one serves: one stage anew, or another version."""
