"""`compare`: methods x students x books x seeds, resumable, with paired statistics."""
