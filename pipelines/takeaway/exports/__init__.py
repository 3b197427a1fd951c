"""What becomes of an encoder once it is trained: the forms in which other programs take it, a module each."""
