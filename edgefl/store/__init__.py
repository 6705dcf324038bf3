"""Files and SQLite: everything that must survive a power cut."""
