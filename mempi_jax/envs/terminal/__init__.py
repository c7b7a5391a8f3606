"""Terminal tool use: databases that an agent works on with SQL."""
