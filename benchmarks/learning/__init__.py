"""What learners keep of a stream that is sorted by class, beside others in the field."""
