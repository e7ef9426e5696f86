"""Models as they are read, kept in memory and written: storage, normal forms, names, tensors in files of their own."""
