"""What `headrace publish` does: files, folders and lines become records, each sent once."""
