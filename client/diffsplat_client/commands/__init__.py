"""Sub-commands of `diffsplat`. Other distributions add theirs by the entry-point group `diffsplat_client.commands`."""
