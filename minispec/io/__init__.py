"""Files: written aside and renamed, checked when read."""
