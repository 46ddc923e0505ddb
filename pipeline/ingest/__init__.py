"""Videos become caches in a store: what is to be done, the job through Ray, and each video's outcome."""
