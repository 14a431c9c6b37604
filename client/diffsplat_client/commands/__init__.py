"""Sub-commands of `diffsplat`. Other distributions add theirs to the entry-point group `diffsplat_client.commands`."""
