"""What pretraining changes: measured here in hours of two cores, and written as docs/note.md."""
