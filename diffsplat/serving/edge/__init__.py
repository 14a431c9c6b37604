"""The only door that clients reach: ends their connections itself and hands their requests to a Triton behind it."""
