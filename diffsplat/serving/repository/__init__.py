"""The served repository: its versions on disk, the device it is served on, and the copy that a server reads."""
