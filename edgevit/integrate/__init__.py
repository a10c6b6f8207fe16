"""What build systems read: the manifest of a build, and the depfile that says what it was made of."""
