# placeholder; filled below
